"""Packages that are slow to import and used by few tests: each is imported before the first test that uses it.

Every worker process of a test run collects all tests, and the two official SDKs alone have 3700 modules.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule:
    """A placeholder for a package that imports it on first use.

    Args:
        package: name of the package.
    """

    def __init__(self, package: str) -> None:
        self._package = package

    def load(self) -> ModuleType:
        """Import and return the package."""
        return importlib.import_module(self._package)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pytest inspects everything in a module to find tests
            raise AttributeError(name)
        return getattr(self.load(), name)


if TYPE_CHECKING:
    import anthropic
    import openai
    import openresponses
    import trustme
else:
    anthropic, openai, openresponses, trustme = (
        LazyModule("anthropic"),
        LazyModule("openai"),
        LazyModule("openresponses"),
        LazyModule("trustme"),
    )

__all__ = ["anthropic", "openai", "openresponses", "trustme"]
