"""Clocks that are passed in, so that code that depends on time can be tested without waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Protocol

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class UnixTime:
    """Marks a number as a point in time in Unix seconds, 0 for none. The command prints it as RFC 3339.

    Attributes:
        exact: whether fractions of a second matter.
    """

    exact: bool = False


Timestamp = Annotated[float, UnixTime()]
"""Unix seconds at which something started, changed or was last seen."""

PreciseTimestamp = Annotated[float, UnixTime(exact=True)]
"""Unix seconds of something that is ordered relative to others, such as a log line."""


class Clock(Protocol):
    """The source of time for code that computes with it."""

    def monotonic(self) -> float:
        """Return seconds that never decrease, for deadlines and durations."""
        ...

    def unix(self) -> float:
        """Return the host's time in seconds since 1970, for display and for other hosts."""
        ...


class SystemClock(Clock):
    """The host's clock."""

    @override
    def monotonic(self) -> float:
        return time.monotonic()

    @override
    def unix(self) -> float:
        return time.time()


class ManualClock(Clock):
    """A clock that only moves when `advance` is called, for tests and simulation."""

    def __init__(self, monotonic: float = 0.0, unix: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._unix = unix

    @override
    def monotonic(self) -> float:
        return self._monotonic

    @override
    def unix(self) -> float:
        return self._unix

    def advance(self, seconds: float) -> None:
        """Move both times forward."""
        self._monotonic += seconds
        self._unix += seconds
