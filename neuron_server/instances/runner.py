"""The life of one engine: start, wait until it is ready, watch it, bring it back after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from cortex_common.clock import Clock
from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import CortexError, LoadFailed, UpstreamTimeout
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.harness.base import Launch, Probe, ProcessHarness
from neuron_server.instances.state_machine import (
    Instance,
    advance,
    load_deadline_s,
    load_progress,
    restart_delay_s,
)
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.exit_reason import Exit, ExitKind, classify
from neuron_server.process.process_table import listening_pids, read_table
from neuron_server.process.supervisor import Supervisor

_IDLE_POLL_S = 0.1
_IDLE_LOOKS = 2
_FREED_POLL_S = 0.1
_FREED_LIMIT_S = 15.0
_NOISE_MB = 8


async def until_idle(
    clock: Clock, within_s: float, in_flight: Callable[[], Awaitable[int | None]]
) -> bool:
    """Wait until an engine has nothing to do, or the time is over; says whether it is idle.

    Two looks in a row must agree: a request may be on its way in. An engine that can't tell is not waited for.
    """
    deadline = clock.monotonic() + within_s
    idle = 0
    while True:
        idle = 0 if await in_flight() else idle + 1
        if idle == _IDLE_LOOKS:
            return True
        if not idle and clock.monotonic() >= deadline:
            return False
        await asyncio.sleep(_IDLE_POLL_S)


async def until_freed(clock: Clock, free_mb: Callable[[], Awaitable[list[int]]]) -> None:
    """Wait until free memory no longer rises: drivers give it back some time after the process is gone."""
    deadline = clock.monotonic() + _FREED_LIMIT_S
    last = await free_mb()
    while clock.monotonic() < deadline:
        await asyncio.sleep(_FREED_POLL_S)
        now = await free_mb()
        if all(new <= old + _NOISE_MB for new, old in zip(now, last, strict=True)):
            return
        last = now


log = logging.getLogger(__name__)

_PROBE_EVERY_S = (0.05, 0.5)
"""Seconds between probes: at first, and at most."""
_PORT_TRIES = 3
_LAST_LINES = 500
"""vLLM prints an error and its stack once for each process that it passes through, the cause first."""
_SILENT_LOOKS = 3
_LOOK_LIMIT_S = 5.0


class Runner(Protocol):
    """What the runtime asks of an instance's life, whatever runs it."""

    @property
    def engine(self) -> EngineProcess | None:
        """The engine's process, where it is ours and runs."""
        ...

    def url(self, port: int) -> str:
        """Base URL of the engine, as this host reaches it."""
        ...

    def begin(self, adopted: EngineProcess | None = None) -> None:
        """Start living; with an engine that runs already when there is one."""
        ...

    async def end(self) -> None:
        """Stop the engine; nothing of the instance is left when this returns."""
        ...

    async def let_go(self) -> None:
        """Stop watching; the engine goes on."""
        ...


class RunnerHost(Protocol):
    """What a life tells and asks the runtime, all at once and without waiting."""

    def now(self, instance: InstanceId) -> Instance:
        """The instance as it stands."""
        ...

    def note(self, event: str, level: int = logging.INFO, **facts: object) -> None:
        """Put something into the journal."""
        ...

    def failed(self, instance: InstanceId, kind: str) -> None:
        """Count that its engine failed: see `EngineFailures`."""
        ...

    def change(self, instance: Instance) -> None:
        """Make this the instance's state, on disk where it matters, and tell everybody."""
        ...

    def another_port(self, instance: InstanceId) -> int:
        """A free port of its harness's range."""
        ...

    async def measure(self) -> None:
        """Read the devices now and enter the numbers."""
        ...


class EngineRunner:
    """One instance's engine over all its restarts.

    Args:
        instance: whose life.
        harness: its kind of engine.
        entry: the harness's settings.
        launch: makes the command line for a port.
        host: address that the engine listens on.
        engine_log: where its output goes.
        supervisor: starts its engine.
        ledger: the runtime.
        clock: for durations and times.
        weights_mb: MiB that a load reads, for its deadline.
    """

    def __init__(
        self,
        instance: InstanceId,
        *,
        harness: ProcessHarness,
        entry: HarnessEntry,
        launch: Callable[[int], Launch],
        host: str,
        engine_log: EngineLog,
        supervisor: Supervisor,
        ledger: RunnerHost,
        clock: Clock,
        weights_mb: int | None,
    ) -> None:
        self.id = instance
        self.engine: EngineProcess | None = None
        self._harness = harness
        self._entry = entry
        self._launch = launch
        self._host = host
        self._log = engine_log
        self._supervisor = supervisor
        self._ledger = ledger
        self._clock = clock
        self._weights_mb = weights_mb
        self._task: asyncio.Task[None] | None = None

    def url(self, port: int) -> str:
        """Base URL of the engine, as this host reaches it."""
        return f"http://{self._host}:{port}"

    def begin(self, adopted: EngineProcess | None = None) -> None:
        """Start living; with an engine that runs already when there is one."""
        self.engine = adopted
        self._task = asyncio.create_task(self._live(), name=f"life of {self.id}")

    async def end(self) -> None:
        """Stop the engine, whatever it is doing; nothing of it is left when this returns."""
        await self._cancel()
        await self._stop_engine()

    async def let_go(self) -> None:
        """Stop watching; the engine goes on."""
        await self._cancel()
        if self.engine is not None:
            self.engine.let_go()

    async def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _stop_engine(self) -> None:
        if self.engine is not None:
            stop_signal = self._harness.capabilities.stop_signal
            await self.engine.stop(stop_signal, self._entry.stop_timeout_s)
            self.engine = None

    async def _live(self) -> None:
        try:
            while True:
                try:
                    await self._become_ready()
                except CortexError as failed:
                    self._ledger.failed(self.id, failed.details.get("exit") or failed.code)
                    await self._fail(failed.message)
                    return
                if not await self._until_crash():
                    return
        except Exception as failed:
            log.exception("instance_life_broke", extra={"facts": {"instance": self.id}})
            self._ledger.failed(self.id, CortexError.code)
            await self._fail(f"internal error: {failed!r}")

    async def _fail(self, why: str) -> None:
        await self._stop_engine()
        await self._ledger.measure()  # whoever sees it failed sees its memory free too
        instance = advance(self._ledger.now(self.id), InstanceState.FAILED, error=why)
        self._ledger.note("instance_failed", logging.WARNING, instance=self.id, reason=why)
        self._ledger.change(instance)

    async def _become_ready(self) -> None:
        """Start the engine unless it was adopted, wait for its sign, measure it."""
        begun = self._clock.monotonic()
        probe = await self._first_sign(begun)
        seconds = self._clock.monotonic() - begun
        await self._ledger.measure()
        loading = self._ledger.now(self.id)
        ready = advance(
            loading,
            InstanceState.READY,
            ready_at=self._clock.unix(),
            load_seconds=loading.load_seconds or round(seconds, 3),
            context=probe.context or loading.spec.context,
            parallel=probe.parallel or loading.spec.parallel,
            engine_version=probe.version,
            error=None,
        )
        self._ledger.change(ready)
        self._ledger.note(
            "instance_ready", instance=self.id, model=loading.spec.model_id, seconds=seconds
        )

    async def _first_sign(self, begun: float) -> Probe:
        """Wait until the engine answers, on another port when its own was snatched away."""
        for _ in range(_PORT_TRIES - 1):
            try:
                return await self._started_sign(begun)
            except _PortTaken:
                await self._stop_engine()
                port = self._ledger.another_port(self.id)
                self._ledger.change(dataclasses.replace(self._ledger.now(self.id), port=port))
        return await self._started_sign(begun)

    async def _started_sign(self, begun: float) -> Probe:
        if self.engine is None:
            self._start()
        return await self._await_sign(begun)

    def _start(self) -> None:
        instance = self._ledger.now(self.id)
        launch = self._launch(instance.port)
        with self._log.open_for_engine() as output:
            self.engine = self._supervisor.start(launch, output, self.id)
        self._ledger.note(
            "engine_started",
            instance=self.id,
            model=instance.spec.model_id,
            pid=self.engine.pid,
            port=instance.port,
        )
        self._ledger.change(dataclasses.replace(instance, stage="starting"))

    async def _await_sign(self, begun: float) -> Probe:
        assert self.engine is not None
        patience = LoadDeadline(
            self._clock,
            self._entry.load_timeout_s,
            load_deadline_s(self._weights_mb, self._ledger.now(self.id).expected_load_s),
        )
        ended = asyncio.ensure_future(self.engine.wait())
        pause = _PROBE_EVERY_S[0]
        try:
            while not ended.done():
                probe = await self._probe()
                if probe.ready:
                    return probe
                self._note_progress(probe, begun)
                instance = self._ledger.now(self.id)
                signs = (probe.progress, instance.measured_mb, self._log.size())
                patience.look(probe.stage, signs)
                await asyncio.wait({ended}, timeout=pause)
                pause = min(pause * 1.2, _PROBE_EVERY_S[1])
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({ended})
        end = self._why(self.engine)
        failure = _PortTaken if end.kind is ExitKind.PORT_TAKEN else LoadFailed
        raise failure(end.message, details={"exit": str(end.kind)})

    async def _probe(self) -> Probe:
        instance = self._ledger.now(self.id)
        probe = await self._harness.probe(instance.spec, self.url(instance.port))
        if not probe.ready:
            return probe
        assert self.engine is not None
        if not listening_pids(instance.port, self.engine.pids(read_table())):
            raise _PortTaken(
                f"port {instance.port} is answered by a process that is not the engine"
            )
        return probe

    def _note_progress(self, probe: Probe, begun: float) -> None:
        instance = self._ledger.now(self.id)
        past = self._clock.monotonic() - begun
        progress = probe.progress if probe.progress is not None else load_progress(instance, past)
        if (probe.stage, progress) != (instance.stage, instance.progress):
            changed = dataclasses.replace(instance, stage=probe.stage, progress=progress)
            self._ledger.change(changed)

    async def _until_crash(self) -> bool:
        """Wait for the engine's end, or until it hangs; True once it is time to start it again."""
        assert self.engine is not None
        end = await self._end_or_hang(self.engine)
        await self._stop_engine()  # what the head left behind
        instance = self._ledger.now(self.id)
        if instance.state is not InstanceState.READY:
            return False  # it was being drained, and whoever drains it does the rest
        again = restart_delay_s(instance, self._clock.unix())
        self._ledger.failed(self.id, end.kind)
        self._ledger.note("engine_crashed", logging.ERROR, instance=self.id, kind=end.kind)
        if again is None:
            await self._fail(end.message)
            return False
        delay, crashes = again
        stage = f"restarting in {delay:.0f} s after a crash"
        self._ledger.change(
            advance(
                instance, InstanceState.LOADING, crashes=crashes, stage=stage, error=end.message
            )
        )
        await asyncio.sleep(delay)
        return True

    async def _end_or_hang(self, engine: EngineProcess) -> Exit:
        every, silent = self._entry.health_every_s, 0
        while silent < _SILENT_LOOKS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.wait(), every)
                return self._why(engine)
            silent = 0 if await self._answers(min(every, _LOOK_LIMIT_S)) else silent + 1
        return Exit(ExitKind.HUNG, f"the engine did not answer {_SILENT_LOOKS} times in a row")

    def _why(self, engine: EngineProcess) -> Exit:
        """Why an engine ended."""
        return classify(engine.status, self._log.tail(_LAST_LINES), engine.oom_kills)

    async def _answers(self, within_s: float) -> bool:
        instance = self._ledger.now(self.id)
        url = self.url(instance.port)
        with contextlib.suppress(TimeoutError):
            probe = await asyncio.wait_for(self._harness.probe(instance.spec, url), within_s)
            return probe.ready
        return False


class _PortTaken(LoadFailed):
    """Somebody else listens on the port that was free a moment ago."""


class LoadDeadline:
    """Gives a load up when nothing moves for the deadline's length, or at the operator's own limit."""

    def __init__(self, clock: Clock, limit_s: float | None, stuck_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._stuck_s = stuck_s
        self._begun = self._moved = clock.monotonic()
        self._seen: object = None

    def look(self, stage: str | None, signs: object) -> None:
        """Compare the stage and the other signs of progress with the last.

        Raises:
            UpstreamTimeout: it took too long.
        """
        now = self._clock.monotonic()
        if (stage, signs) != self._seen:
            self._seen, self._moved = (stage, signs), now
        last = "nothing answers at its port" if stage == "starting" else stage or "it says nothing"
        if self._limit_s is not None and now - self._begun > self._limit_s:
            raise UpstreamTimeout(f"the engine was not ready after {self._limit_s:.0f} s: {last}")
        if self._limit_s is None and now - self._moved > self._stuck_s:
            raise UpstreamTimeout(
                f"the load made no progress for {self._stuck_s:.0f} s: {last}",
                hints=("set load_timeout_s of the harness in neuron.toml",),
            )
