"""A circuit breaker per instance, and the retry budget of the gateway.

::

    closed ──3 failures in a row──► open ──delay elapsed──► half-open ──success──► closed
                                     ▲                          │
                                     └──failure: twice the delay┘

A failure is the engine's fault: no connection, a connection that broke off, a 5xx, a key that it rejects. What a client
did wrong is a success of the engine; requests that the client cancelled before the answer count as neither. An engine
that is busy and says for how long (Retry-After) gets no requests for that time, and then all of them again, without a
trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cortex_common.backoff import Backoff

FAILURE_THRESHOLD = 3
"""Failures in a row that open the breaker. One can be a coincidence; each further one costs a client its first try."""

OPEN_BACKOFF = Backoff(initial_s=1.0, max_s=30.0)
"""How long a breaker stays open before the next trial."""

MIN_COOL_DOWN_S = 0.1
MAX_COOL_DOWN_S = 3600.0
"""Bounds of the pause that an engine can ask for: zero would be no pause, and a wrong date must not bar it for days."""

MAX_RETRY_TOKENS = 100.0
RETRY_TOKENS_PER_REQUEST = 0.2
RETRY_TOKENS_PER_SECOND = 1.0


class BreakerState(StrEnum):
    """Whether an instance gets requests; the names are those of electrical breakers, so closed is healthy."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Requests that an instance answered and failed since the last report about it."""

    succeeded: int = 0
    failed: int = 0


@dataclass(slots=True)
class Breaker:
    """The breaker of one instance.

    Attributes:
        state: whether requests are sent to the instance; in half-open, one trial request.
        failures: failures since the last success.
        reason: why the last failure happened.
        disabled: count failures, but never open because of them.
        cooling: open because the engine asked for a pause, not because of failures.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    reason: str | None = None
    disabled: bool = False
    cooling: bool = False
    _times_opened: int = 0
    _times_cooled: int = 0
    _succeeded: int = 0
    _failed: int = 0

    def take_outcomes(self) -> Outcomes:
        """Return the outcomes since the last call."""
        outcomes = Outcomes(self._succeeded, self._failed)
        self._succeeded = self._failed = 0
        return outcomes

    def record_success(self) -> bool:
        """Close the breaker; return whether it was open or half-open."""
        self.failures = 0
        self._succeeded += 1
        if self.cooling:
            return False
        self._times_cooled = 0
        if self.state is BreakerState.CLOSED:
            return False
        self.state, self.reason, self._times_opened = BreakerState.CLOSED, None, 0
        return True

    def record_failure(self, reason: str) -> float | None:
        """Count a failure.

        Returns:
            Seconds for which the breaker is open, when this failure opens it; else None.
        """
        self.failures += 1
        self._failed += 1
        self.reason = reason
        if self.disabled or self.state is BreakerState.OPEN:
            return None
        if self.state is BreakerState.CLOSED and self.failures < FAILURE_THRESHOLD:
            return None
        self.state = BreakerState.OPEN
        self._times_opened += 1
        return OPEN_BACKOFF.delay_s(self._times_opened)

    def cool_down(self, seconds: float | None, reason: str) -> float | None:
        """Open because the engine is busy.

        Args:
            seconds: how long it asked to be left alone; None if it did not say, which grows from time to time.
            reason: what it said.

        Returns:
            Seconds for which the breaker is open; None when it already was.
        """
        if self.state is BreakerState.OPEN:
            return None
        self.state, self.reason, self.cooling = BreakerState.OPEN, reason, True
        self._times_cooled += 1
        if seconds is None:
            return OPEN_BACKOFF.delay_s(self._times_cooled)
        return min(max(seconds, MIN_COOL_DOWN_S), MAX_COOL_DOWN_S)

    def end_pause(self) -> None:
        """Let requests through again, once the delay has elapsed: after failures only one, as a trial."""
        if self.state is not BreakerState.OPEN:
            return
        if self.cooling:
            self.state, self.reason, self.cooling = BreakerState.CLOSED, None, False
        else:
            self.state = BreakerState.HALF_OPEN


@dataclass(slots=True)
class RetryBudget:
    """A limit on retries across the gateway, so that a failing fleet does not get twice the load.

    Each request earns a fifth of a retry, and each second a whole one, up to a hundred saved; each retry spends one.
    """

    tokens: float = 20.0

    def earn(self) -> None:
        """Count a request."""
        if self.tokens < MAX_RETRY_TOKENS:
            self.tokens += RETRY_TOKENS_PER_REQUEST

    def earn_by_time(self, seconds: float) -> None:
        """Count seconds that have passed: when requests are rare, retries are no load."""
        self.tokens = min(self.tokens + seconds * RETRY_TOKENS_PER_SECOND, MAX_RETRY_TOKENS)

    def spend(self) -> bool:
        """Take one retry from the budget; return whether there was one."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
