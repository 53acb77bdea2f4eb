"""Liveness is progress: what an engine delivers counts, and its health check is one witness among others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_common.clock import ManualClock
from neuron_server.instances.liveness import (
    BUSY_STALL_S,
    MAX_FAILED_CHECKS,
    MAX_FAILURES,
    STALL_S,
    SUSPICIOUS_FAILURES,
    LivenessMonitor,
)
from neuron_server.instances.load_deadline import LoadDeadline
from neuron_server.process.exit_reason import ExitKind
from neuron_server.usage import FailureStreak

INTERVAL_S = 15.0


@dataclass
class FakeWitness:
    """An engine as a test describes it."""

    healthy: bool = True
    requests: int = 0
    delivered: int = 0
    cpu: float = 0.0
    streak: FailureStreak = field(default_factory=FailureStreak)

    def sent(self) -> Mapping[bytes, int]:
        """Return the bytes of its one connection."""
        return {b"1": self.delivered}

    def cpu_seconds(self) -> float:
        """Return its CPU time."""
        return self.cpu

    async def is_healthy(self) -> bool:
        """Return whether its health check succeeds."""
        return self.healthy

    async def in_flight(self) -> int:
        """Return its requests."""
        return self.requests

    def failures(self) -> FailureStreak:
        """Return the requests that it failed."""
        return self.streak

    def forget_failures(self) -> None:
        """Start over."""
        self.streak = FailureStreak()


class Engine:
    """A monitored engine, on a clock that a test moves."""

    def __init__(self, *, token: bool | None = None, **state: object) -> None:
        self.clock = ManualClock()
        self.witness = FakeWitness(**state)  # type: ignore[arg-type]
        self.tokens_requested = 0
        self.token = token
        probe = None if token is None else self._probe
        self.monitor = LivenessMonitor(self.witness, probe, self.clock, INTERVAL_S)

    async def _probe(self) -> bool:
        self.tokens_requested += 1
        assert self.token is not None
        return self.token

    async def verdict(self, seconds: float, *, bytes_per_check: int = 0, cpu: float = 0.0):
        """Check for some time; return the first verdict."""
        for _ in range(round(seconds / INTERVAL_S)):
            self.clock.advance(INTERVAL_S)
            self.witness.delivered += bytes_per_check
            self.witness.cpu += cpu * INTERVAL_S
            if (reason := await self.monitor.check()) is not None:
                return reason
        return None


async def test_an_idle_engine_with_a_silent_health_check_is_hung():
    """Without requests, three health checks in a row decide."""
    engine = Engine(healthy=False)
    assert await engine.verdict((MAX_FAILED_CHECKS - 1) * INTERVAL_S) is None
    reason = await engine.verdict(INTERVAL_S)
    assert reason is not None
    assert reason.kind is ExitKind.HUNG


async def test_an_engine_whose_bytes_flow_is_never_killed():
    """A stream that flows outweighs a health check that is silent for an hour."""
    engine = Engine(healthy=False, requests=1)
    assert await engine.verdict(3600.0, bytes_per_check=10) is None
    assert await engine.verdict(3600.0) is not None


async def test_an_engine_that_computes_a_long_prompt_is_not_hung():
    """An engine that uses its CPU and has not sent a byte yet gets minutes, however silent its health check is."""
    engine = Engine(healthy=False, requests=1)
    assert await engine.verdict(BUSY_STALL_S - 2 * INTERVAL_S, cpu=1.0) is None
    assert await engine.verdict(BUSY_STALL_S, cpu=1.0) is not None


async def test_an_engine_that_is_wedged_in_mid_stream_is_restarted():
    """Requests, no bytes and no CPU time: its health check may say what it likes."""
    engine = Engine(requests=1)
    assert await engine.verdict(STALL_S - INTERVAL_S) is None
    reason = await engine.verdict(3 * INTERVAL_S)
    assert reason is not None
    assert "has sent nothing" in reason.message


async def test_an_engine_that_grants_a_token_is_not_wedged():
    """A slow request does not end an engine that still answers others."""
    engine = Engine(token=True, requests=1)
    assert await engine.verdict(3 * STALL_S) is None
    assert engine.tokens_requested


async def test_an_engine_that_fails_every_request_is_restarted():
    """Errors in a row, and no token either, while /health says ok."""
    engine = Engine(token=False)
    engine.witness.streak = FailureStreak(SUSPICIOUS_FAILURES - 1, "engine_500")
    assert await engine.verdict(INTERVAL_S) is None
    assert not engine.tokens_requested
    engine.witness.streak = FailureStreak(SUSPICIOUS_FAILURES, "engine_500")
    reason = await engine.verdict(INTERVAL_S)
    assert reason is not None
    assert reason.kind is ExitKind.FAILING
    assert "engine_500" in reason.message


async def test_requests_that_any_engine_would_fail_restart_none():
    """If the engine grants a token, the requests were at fault, and counting starts again."""
    engine = Engine(token=True)
    engine.witness.streak = FailureStreak(50, "engine_500")
    assert await engine.verdict(10 * INTERVAL_S) is None
    assert engine.tokens_requested == 1


async def test_an_engine_that_cannot_be_asked_needs_more_failures():
    """Without a token probe, more errors in a row decide."""
    engine = Engine()
    engine.witness.streak = FailureStreak(MAX_FAILURES - 1, "engine_500")
    assert await engine.verdict(INTERVAL_S) is None
    engine.witness.streak = FailureStreak(MAX_FAILURES, "engine_500")
    assert await engine.verdict(INTERVAL_S) is not None


async def test_time_in_which_the_neuron_stood_still_counts_against_no_engine():
    """After SIGSTOP or a stall of the neuron itself, an engine gets its whole time again."""
    engine = Engine(requests=1, healthy=False)
    assert await engine.verdict((MAX_FAILED_CHECKS - 1) * INTERVAL_S) is None
    engine.clock.advance(10 * BUSY_STALL_S)
    assert await engine.monitor.check() is None
    assert await engine.verdict((MAX_FAILED_CHECKS - 1) * INTERVAL_S) is None


def test_a_load_is_not_aborted_for_a_standstill_of_the_neuron():
    """Neither the operator's limit nor the limit without progress runs while the neuron is stopped."""
    clock = ManualClock()
    for limit_s in (60.0, None):
        deadline = LoadDeadline(clock, limit_s, 60.0)
        deadline.check("loading", 1)
        clock.advance(3600.0)
        deadline.check("loading", 1)
