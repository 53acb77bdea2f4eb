"""How long the client of a connection has been waited for."""

from __future__ import annotations

import math

from cortex_http.routing import Limits


class RequestTimes:
    """Times of the request that a connection receives, or of the pause before it, by the event loop's clock.

    Attributes:
        waiting_since: When the last byte was waited for; None while nothing is.
        idle_since: When the last response ended, if no byte of the next request has arrived.
    """

    __slots__ = ("_body_bytes", "_body_since", "idle_since", "waiting_since")

    def __init__(self, now: float) -> None:
        self.waiting_since: float | None = now
        self.idle_since: float | None = None
        self._body_since = now
        self._body_bytes = 0

    def begin_body(self, now: float) -> None:
        """Note that a head is complete, or that its body is waited for again."""
        self.waiting_since = self._body_since = now
        self._body_bytes = 0

    def receive_body(self, size: int, now: float) -> None:
        """Note that a piece of the body has arrived."""
        self.waiting_since = now
        self._body_bytes += size

    def is_late(self, now: float, limits: Limits, *, in_head: bool) -> bool:
        """Return whether the request takes too long.

        Args:
            now: Current time.
            limits: Limits of the connection.
            in_head: Whether its head is waited for, rather than its body.
        """
        if self.waiting_since is None:
            return False
        waited = now - self.waiting_since
        if in_head:
            return waited > limits.header_timeout_s
        rate = limits.min_body_rate_kb * 1024
        allowed = limits.body_timeout_s + (self._body_bytes / rate if rate else math.inf)
        return waited > limits.body_timeout_s or now - self._body_since > allowed

    def discount(self, seconds: float) -> None:
        """Count time in which this process stood still as if it had not passed."""
        self._body_since += seconds
        if self.idle_since is not None:
            self.idle_since += seconds
        if self.waiting_since is not None:
            self.waiting_since += seconds
