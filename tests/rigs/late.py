"""Packages that few tests use and that take long to import, each imported when something of it is first asked for.

Every process of a run collects all tests. The two official SDKs alone are 3700 modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anthropic
    import openai
    import trustme
else:

    class _Late:
        """Stands for a package."""

        def __init__(self, package: str) -> None:
            self._package = package

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # pytest asks everything in a module whether it is a test
                raise AttributeError(name)
            return getattr(importlib.import_module(self._package), name)

    anthropic = _Late("anthropic")
    openai = _Late("openai")
    trustme = _Late("trustme")

__all__ = ["anthropic", "openai", "trustme"]
