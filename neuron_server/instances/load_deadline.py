"""How long a load may take: as long as it makes progress, or as long as the operator says."""

from __future__ import annotations

from cortex_common.clock import Clock
from cortex_common.errors import UpstreamTimeout

_STANDSTILL_S = 10.0
"""Seconds between two checks after which this process, and not the engine, has stood still."""


class LoadDeadline:
    """Aborts a load that makes no progress for some time, or that exceeds the operator's limit.

    Args:
        clock: measures durations.
        limit_s: the operator's limit in seconds, which replaces the limit without progress.
        stuck_s: seconds without progress after which the load is aborted.
    """

    def __init__(self, clock: Clock, limit_s: float | None, stuck_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._stuck_s = stuck_s
        self._started = self._last_change = self._checked = clock.monotonic()
        self._last: object = None

    def check(self, stage: str | None, signals: object) -> None:
        """Compare the stage and other signals of progress with those of the last call.

        Raises:
            UpstreamTimeout: a limit is exceeded.
        """
        now = self._clock.monotonic()
        if now - self._checked > _STANDSTILL_S:
            self._started += now - self._checked
            self._last_change += now - self._checked
        self._checked = now
        if (stage, signals) != self._last:
            self._last, self._last_change = (stage, signals), now
        status = (
            "nothing answers on its port" if stage == "starting" else stage or "no status reported"
        )
        if self._limit_s is not None and now - self._started > self._limit_s:
            raise UpstreamTimeout(f"the engine was not ready after {self._limit_s:.0f} s: {status}")
        if self._limit_s is None and now - self._last_change > self._stuck_s:
            raise UpstreamTimeout(
                f"the load made no progress for {self._stuck_s:.0f} s: {status}",
                hints=("set load_timeout_s of the harness in neuron.toml",),
            )
