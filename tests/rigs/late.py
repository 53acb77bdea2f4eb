"""Packages that few tests use and that take long to import: each is imported before the first test that names it.

Every process of a run collects all tests. The two official SDKs alone are 3700 modules.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Late:
    """Stands for a package.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self._package = package

    def load(self) -> ModuleType:
        """The package itself."""
        return importlib.import_module(self._package)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pytest asks everything in a module whether it is a test
            raise AttributeError(name)
        return getattr(self.load(), name)


if TYPE_CHECKING:
    import anthropic
    import openai
    import trustme
else:
    anthropic, openai, trustme = Late("anthropic"), Late("openai"), Late("trustme")

__all__ = ["anthropic", "openai", "trustme"]
