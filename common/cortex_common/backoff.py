"""Exponential back-off: how long to wait before the next attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MAX_DOUBLINGS = 60
"""2 ** 60 exceeds every maximum in use; a larger exponent would overflow a float at about 1,000 failures."""


def _no_jitter() -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """A delay that doubles with each failure in a row, up to a maximum.

    Attributes:
        initial_s: seconds to wait after the first failure.
        max_s: longest delay in seconds, before jitter.
        jitter: returns the factor that a delay is multiplied with. Clients that fail at the same time need a
            random one, or they retry at the same time as well.
    """

    initial_s: float
    max_s: float
    jitter: Callable[[], float] = _no_jitter

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after this many failures in a row; 0 after none."""
        if failures < 1:
            return 0.0
        doublings = min(failures - 1, _MAX_DOUBLINGS)
        return min(self.initial_s * 2.0**doublings, self.max_s) * self.jitter()
