"""Rows that are made when somebody looks at them: of five hundred a screen shows forty. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

Row = TypeVar("Row")


class Rows(Sequence[Row]):
    """Rows in their order.

    Args:
        ids: of the rows; each names its row over all changes.
        make: the row at a position.
    """

    def __init__(self, ids: Sequence[str] = (), make: Callable[[int], Row] | None = None) -> None:
        self.ids = ids
        self._make = make

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """The row, made anew."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._make is None or not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(index % len(self))
