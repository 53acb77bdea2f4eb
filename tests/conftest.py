"""What holds for every test: the collector of garbage looks at the tests' own objects only."""

from __future__ import annotations

import gc


def pytest_collection() -> None:
    """Nothing that an import makes is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, so they need not be looked at again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
