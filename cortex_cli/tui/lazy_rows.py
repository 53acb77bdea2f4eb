"""Rows that are built on access: a screen shows forty of five hundred. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from typing_extensions import override

Row = TypeVar("Row")


class LazyRows(Sequence[Row]):
    """A sequence of rows that builds each row when it is accessed.

    Args:
        ids: ids of the rows in their order; a row keeps its id over all changes.
        build: returns the row at a position.
    """

    def __init__(self, ids: Sequence[str] = (), build: Callable[[int], Row] | None = None) -> None:
        self.ids = ids
        self._build = build

    @override
    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._build is None or not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._build(index % len(self))
