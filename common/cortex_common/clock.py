"""Time as something that is handed in, so that whatever depends on it can be tested at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Protocol


@dataclass(frozen=True, slots=True)
class UnixTime:
    """Marks a field whose number is a moment in Unix seconds, 0 for none; the command writes it as RFC 3339.

    Attributes:
        exact: fractions of its seconds matter.
    """

    exact: bool = False


Moment = Annotated[float, UnixTime()]
"""Unix seconds at which something began, changed or was last seen."""

ExactMoment = Annotated[float, UnixTime(exact=True)]
"""Unix seconds of something that is put in order with others, such as a line of a log."""


class Clock(Protocol):
    """What code that computes with time is given."""

    def monotonic(self) -> float:
        """Seconds that never go back; for deadlines and durations."""
        ...

    def unix(self) -> float:
        """Seconds since 1970 as the host believes; for what people and other hosts read."""
        ...


class SystemClock:
    """The host's clock."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def unix(self) -> float:
        """See `Clock.unix`."""
        return time.time()


class ManualClock:
    """A clock that stands still until it is moved; for tests and simulation."""

    def __init__(self, monotonic: float = 0.0, unix: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._unix = unix

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._monotonic

    def unix(self) -> float:
        """See `Clock.unix`."""
        return self._unix

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._unix += seconds
