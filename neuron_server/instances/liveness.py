"""Whether an engine is alive: judged by its progress, of which its health check is one witness among several.

An engine whose bytes flow is never killed, however silent its health check is. An engine that fails every request, or
has requests and sends nothing, is not well, whatever its health check says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cortex_common.clock import Clock
from neuron_server.process.exit_reason import ExitKind, ExitReason
from neuron_server.process.tcp_progress import has_moved
from neuron_server.usage import FailureStreak

MAX_FAILED_CHECKS = 3
"""Failed health checks in a row, without any progress, after which an idle engine counts as hung."""

STALL_S = 120.0
"""Seconds for which an engine that computes nothing may have requests and send nothing."""

BUSY_STALL_S = 900.0
"""The same for an engine that does compute: a long prompt on a CPU takes minutes until its first byte."""

SUSPICIOUS_FAILURES = 3
"""Failed requests in a row after which an engine is asked for a token."""

MAX_FAILURES = 5
"""Failed requests in a row after which an engine that can't be asked for a token is restarted."""

_BUSY_CPU_SHARE = 0.2
"""Share of one CPU that an engine that computes uses at least; a deadlocked one uses next to none."""

_STANDSTILL_FACTOR = 3.0


class Witness(Protocol):
    """What can be observed of a running engine."""

    def sent(self) -> Mapping[bytes, int]:
        """Return the bytes that each of its connections has delivered; see `tcp_progress`."""
        ...

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used."""
        ...

    async def is_healthy(self) -> bool:
        """Return whether its health check succeeds."""
        ...

    async def in_flight(self) -> int:
        """Return its requests in flight, as far as anyone reports them."""
        ...

    def failures(self) -> FailureStreak:
        """Return the requests that it has failed since it last answered one."""
        ...

    def forget_failures(self) -> None:
        """Start counting failures again."""
        ...


@dataclass(slots=True)
class _Observation:
    at: float
    sent: Mapping[bytes, int]
    cpu_seconds: float


class LivenessMonitor:
    """Judges one engine at intervals.

    Args:
        witness: observes the engine.
        probe_token: asks the engine for one token, and returns whether it answered; None if it can't be asked.
        clock: measures durations.
        interval_s: seconds between two checks.
    """

    def __init__(
        self,
        witness: Witness,
        probe_token: Callable[[], Awaitable[bool]] | None,
        clock: Clock,
        interval_s: float,
    ) -> None:
        self._witness = witness
        self._probe_token = probe_token
        self._clock = clock
        self._interval_s = interval_s
        self._failed_checks = 0
        self._last = self._observe()
        self._progress_at = self._last.at
        self._busy = False

    async def check(self) -> ExitReason | None:
        """Observe the engine; return why it must be restarted, or None."""
        before, now = self._last, self._observe()
        self._last = now
        if now.at - before.at > _STANDSTILL_FACTOR * max(self._interval_s, 1.0) + 10.0:
            self._start_over(
                now.at
            )  # this process stood still, which says nothing about the engine
            return None
        if has_moved(before.sent, now.sent):
            self._progress_at, self._failed_checks = now.at, 0
        healthy = await self._witness.is_healthy()
        self._failed_checks = 0 if healthy else self._failed_checks + 1
        await self._update_busy(now.at)
        elapsed_s = max(now.at - before.at, 1e-6)
        computing = (now.cpu_seconds - before.cpu_seconds) / elapsed_s >= _BUSY_CPU_SHARE
        stall_s = BUSY_STALL_S if computing else STALL_S
        stalled_s = self._clock.monotonic() - self._progress_at if self._busy else 0.0
        if self._failed_checks >= MAX_FAILED_CHECKS and (not self._busy or stalled_s >= stall_s):
            return ExitReason(
                ExitKind.HUNG,
                f"the engine did not answer {self._failed_checks} consecutive health checks",
            )
        if stalled_s >= stall_s:
            return await self._judge_stall(stalled_s)
        return await self._judge_failures()

    async def _update_busy(self, now: float) -> None:
        """Note whether there are requests; the time without progress starts with the first of them."""
        busy = await self._witness.in_flight() > 0
        if busy and not self._busy:
            self._progress_at = max(self._progress_at, now)
        self._busy = busy

    async def _judge_stall(self, stalled_s: float) -> ExitReason | None:
        if self._probe_token is not None and await self._probe_token():
            self._start_over(self._clock.monotonic())
            return None
        return ExitReason(
            ExitKind.HUNG, f"the engine has requests and has sent nothing for {stalled_s:.0f} s"
        )

    async def _judge_failures(self) -> ExitReason | None:
        streak = self._witness.failures()
        enough = MAX_FAILURES if self._probe_token is None else SUSPICIOUS_FAILURES
        if streak.failed < enough:
            return None
        if self._probe_token is not None and await self._probe_token():
            self._witness.forget_failures()  # the requests were at fault, not the engine
            return None
        return ExitReason(
            ExitKind.FAILING,
            f"the engine failed {streak.failed} requests in a row ({streak.reason or 'no reason'})",
        )

    def _observe(self) -> _Observation:
        return _Observation(
            self._clock.monotonic(), self._witness.sent(), self._witness.cpu_seconds()
        )

    def _start_over(self, now: float) -> None:
        self._failed_checks = 0
        self._progress_at = now
