"""When an instance that fails is left alone for a while, and how it is tried again.

::

    closed ──3 failures in a row──► open ──pause is over──► on trial ──success──► closed
                                     ▲                          │
                                     └──failure: twice the pause─┘

A failure is the engine's: no connection, a connection that broke before the answer, a 5xx. What the request is to
blame for (4xx), and what the client gave up, count as neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FAILURES = 3
"""In a row. One can be a coincidence, and every further one costs a client its first try."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class BreakerState(StrEnum):
    """Whether an instance gets requests."""

    CLOSED = "closed"
    OPEN = "open"
    ON_TRIAL = "on_trial"


@dataclass(slots=True)
class Breaker:
    """The record of one instance.

    Attributes:
        standing: closed is the healthy state, as with electricity.
        failures: since the last success.
        reason: of the last failure.
        off: failures are counted, and that is all.
    """

    standing: BreakerState = BreakerState.CLOSED
    failures: int = 0
    reason: str | None = None
    off: bool = False
    _pause_s: float = FIRST_PAUSE_S

    def succeeded(self) -> bool:
        """A request was answered; true when that ends a trial."""
        self.failures = 0
        if self.standing is BreakerState.CLOSED:
            return False
        self.standing, self.reason, self._pause_s = BreakerState.CLOSED, None, FIRST_PAUSE_S
        return True

    def failed(self, reason: str) -> float | None:
        """A request failed; the seconds to leave the instance alone when that opens the breaker."""
        self.failures += 1
        self.reason = reason
        if self.off:
            return None
        if self.standing is BreakerState.ON_TRIAL:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        elif self.standing is BreakerState.OPEN or self.failures < FAILURES:
            return None
        self.standing = BreakerState.OPEN
        return self._pause_s

    def try_again(self) -> None:
        """The pause is over: the next request is the trial."""
        if self.standing is BreakerState.OPEN:
            self.standing = BreakerState.ON_TRIAL


@dataclass(slots=True)
class RetryBudget:
    """How many second tries a gateway may make, so that a sick fleet is not asked twice for everything.

    Each request earns a fifth of a retry, up to a hundred; each retry costs one.
    """

    tokens: float = 20.0

    def earn(self) -> None:
        """A request came."""
        if self.tokens < 100.0:
            self.tokens += 0.2

    def spend(self) -> bool:
        """Whether one more retry is within the budget."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
