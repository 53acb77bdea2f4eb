"""The runner of an instance: starts its engine, waits until it is ready, watches it, and restarts it after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cortex_common.backoff import Backoff
from cortex_common.clock import Clock
from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import CortexError, LoadFailed, UpstreamTimeout
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.harness.base import Probe, ProcessHarness
from neuron_server.instances.state_machine import (
    Instance,
    advance,
    load_deadline_s,
    load_progress,
    restart_delay_s,
)
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.exit_reason import ExitKind, ExitReason, classify
from neuron_server.process.process_table import listening_pids, read_table
from neuron_server.process.supervisor import Launch, Supervisor

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = (0.05, 0.5)
"""Seconds between probes of a loading engine: the first, and the longest."""
_PORT_ATTEMPTS = 3
_RETRY_BACKOFF = Backoff(initial_s=0.2, max_s=10.0)
_LOG_TAIL_LINES = 500
"""Enough for vLLM, which prints an error and its stack once per process that it passes through, the cause first."""
_MAX_FAILED_PROBES = 3
_MAX_HEALTH_TIMEOUT_S = 5.0


class Runner(Protocol):
    """Runs one instance; the runtime's view of `EngineRunner` and `AttachedRunner`."""

    @property
    def engine(self) -> EngineProcess | None:
        """The engine's process, if this node started it and it runs."""
        ...

    def url(self, port: int) -> str:
        """Return the base URL of the engine, as this host reaches it."""
        ...

    def start(self, adopted: EngineProcess | None = None) -> None:
        """Load the model and watch it from then on, in a task; `adopted` is an engine that already runs."""
        ...

    async def stop(self) -> None:
        """Stop the engine; nothing of the instance is left when this returns."""
        ...

    async def detach(self) -> None:
        """Stop watching; the engine keeps running."""
        ...


class RunnerHost(Protocol):
    """What a runner needs from the runtime; all calls except `measure` return immediately."""

    def current(self, instance: InstanceId) -> Instance:
        """Return the current snapshot of an instance."""
        ...

    def record_event(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        """Add an entry to the event log."""
        ...

    def count_failure(self, instance: InstanceId, kind: str) -> None:
        """Count a failure of an instance's engine: see `EngineFailures`."""
        ...

    def update(self, instance: Instance) -> None:
        """Replace the snapshot of an instance, save it if needed, and notify subscribers."""
        ...

    def pick_port(self, instance: InstanceId) -> int:
        """Return another free port of the range of an instance's harness."""
        ...

    async def measure(self) -> None:
        """Read the devices now and apply the measurements."""
        ...

    def held_mb(self, instance: InstanceId) -> int:
        """Return the MiB per device that an instance holds or has reserved."""
        ...

    async def readmit(self, instance: InstanceId) -> None:
        """Reserve memory for the restart of an instance's engine.

        Raises:
            DoesNotFit: another process has taken the memory meanwhile.
        """
        ...

    def loading(self, instance: InstanceId) -> AbstractAsyncContextManager[None]:
        """Return a context in which an instance's engine is started and loads: see `device_order`."""
        ...


class EngineRunner:
    """Runs an instance whose engine is a process of this node, across restarts of that process.

    Args:
        instance: the instance's id.
        harness: the adapter for its engine.
        settings: the harness's settings.
        launch: returns the command line for a port.
        address: address that the engine listens on.
        engine_log: receives the engine's output.
        supervisor: starts the engine.
        host: the runtime.
        clock: measures durations and provides timestamps.
        weights_mb: MiB of weights that a load reads, to compute its deadline.
    """

    def __init__(
        self,
        instance: InstanceId,
        *,
        harness: ProcessHarness,
        settings: HarnessEntry,
        launch: Callable[[int], Launch],
        address: str,
        engine_log: EngineLog,
        supervisor: Supervisor,
        host: RunnerHost,
        clock: Clock,
        weights_mb: int | None,
    ) -> None:
        self.id = instance
        self.engine: EngineProcess | None = None
        self._harness = harness
        self._settings = settings
        self._launch = launch
        self._address = address
        self._log = engine_log
        self._supervisor = supervisor
        self._host = host
        self._clock = clock
        self._weights_mb = weights_mb
        self._task: asyncio.Task[None] | None = None

    def url(self, port: int) -> str:
        """Return the base URL of the engine, as this host reaches it."""
        return f"http://{self._address}:{port}"

    def start(self, adopted: EngineProcess | None = None) -> None:
        """Load the model and watch it from then on, in a task; `adopted` is an engine that already runs."""
        self.engine = adopted
        self._task = asyncio.create_task(self._run(), name=f"runner of {self.id}")

    async def stop(self) -> None:
        """Stop the engine in any state; nothing of it is left when this returns."""
        await self._cancel()
        await self._stop_engine()

    async def detach(self) -> None:
        """Stop watching; the engine keeps running."""
        await self._cancel()
        if self.engine is not None:
            self.engine.detach()

    async def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _stop_engine(self) -> None:
        if self.engine is not None:
            stop_signal = self._harness.capabilities.stop_signal
            await self.engine.stop(stop_signal, self._settings.stop_timeout_s)
            self.engine = None

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._load()
                except CortexError as error:
                    kind = error.details.get("exit") or error.code
                    self._host.count_failure(self.id, kind)
                    await self._fail(error.message, kind)
                    return
                if not await self._watch():
                    return
        except Exception as error:
            log.exception("runner_failed", extra={"fields": {"instance": self.id}})
            self._host.count_failure(self.id, CortexError.code)
            await self._fail(f"internal error: {error!r}", CortexError.code)

    async def _fail(self, reason: str, kind: str) -> None:
        """Stop the engine and mark the instance as failed, however long what prevents that lasts."""
        for failures in itertools.count(1):
            try:
                await self._stop_engine()
                # The failure is published together with the freed memory.
                await self._host.measure()
                break
            except Exception as error:  # noqa: BLE001 - such as a lack of file descriptors, which can pass
                with contextlib.suppress(Exception):
                    self._host.record_event(
                        "engine_stop_failed", logging.ERROR, instance=self.id, reason=error
                    )
                await asyncio.sleep(_RETRY_BACKOFF.delay_s(failures))
        instance = self._host.current(self.id)
        instance = advance(instance, InstanceState.FAILED, error=reason, failure=kind)
        self._host.record_event("instance_failed", logging.WARNING, instance=self.id, reason=reason)
        self._host.update(instance)

    async def _load(self) -> None:
        """Start the engine unless it was adopted, wait until it is ready, and measure it."""
        if self._host.current(self.id).crashes:
            await self._host.readmit(self.id)
        async with self._host.loading(self.id):
            started = self._clock.monotonic()
            probe = await self._start_until_ready(started)
            seconds = self._clock.monotonic() - started
            await self._host.measure()
        loading = self._host.current(self.id)
        ready = advance(
            loading,
            InstanceState.READY,
            ready_at=self._clock.unix(),
            load_seconds=loading.load_seconds or round(seconds, 3),
            context=probe.context or loading.spec.context,
            parallel=probe.parallel or loading.spec.parallel,
            engine_version=probe.version,
            error=None,
            failure=None,
        )
        self._host.update(ready)
        self._host.record_event(
            "instance_ready", instance=self.id, model=loading.spec.model_id, seconds=seconds
        )

    async def _start_until_ready(self, started: float) -> Probe:
        """Start the engine and wait until it is ready; try another port if another process took the first."""
        for attempt in range(_PORT_ATTEMPTS):
            if self.engine is None:
                self._start_engine()
            try:
                return await self._wait_until_ready(started)
            except _PortTaken:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
                await self._stop_engine()
                port = self._host.pick_port(self.id)
                self._host.update(dataclasses.replace(self._host.current(self.id), port=port))
        raise AssertionError("the last attempt returns or raises")

    def _start_engine(self) -> None:
        instance = self._host.current(self.id)
        launch = self._launch(instance.port)
        with self._log.open_for_engine() as output:
            self.engine = self._supervisor.start(launch, output, self.id)
        self._host.record_event(
            "engine_started",
            instance=self.id,
            model=instance.spec.model_id,
            pid=self.engine.pid,
            port=instance.port,
        )
        self._host.update(dataclasses.replace(instance, stage="starting"))

    async def _wait_until_ready(self, started: float) -> Probe:
        assert self.engine is not None
        deadline = LoadDeadline(
            self._clock,
            self._settings.load_timeout_s,
            load_deadline_s(self._weights_mb, self._host.current(self.id).expected_load_s),
        )
        exited = asyncio.ensure_future(self.engine.wait())
        interval = _PROBE_INTERVAL_S[0]
        try:
            while not exited.done():
                probe = await self._probe()
                if probe.ready:
                    return probe
                self._update_progress(probe, started)
                instance = self._host.current(self.id)
                deadline.check(
                    probe.stage, (probe.progress, instance.measured_mb, self._log.size())
                )
                await asyncio.wait({exited}, timeout=interval)
                interval = min(interval * 1.2, _PROBE_INTERVAL_S[1])
        finally:
            exited.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({exited})
        reason = self._exit_reason(self.engine)
        error = _PortTaken if reason.kind is ExitKind.PORT_TAKEN else LoadFailed
        raise error(reason.message, details={"exit": str(reason.kind)})

    async def _probe(self) -> Probe:
        instance = self._host.current(self.id)
        probe = await self._harness.probe(instance.spec, self.url(instance.port))
        if not probe.ready:
            return probe
        assert self.engine is not None
        if not listening_pids(instance.port, self.engine.pids(read_table())):
            raise _PortTaken(f"a process other than the engine listens on port {instance.port}")
        return probe

    def _update_progress(self, probe: Probe, started: float) -> None:
        instance = self._host.current(self.id)
        elapsed = self._clock.monotonic() - started
        progress = probe.progress
        if progress is None:
            progress = load_progress(instance, elapsed)
        if (probe.stage, progress) != (instance.stage, instance.progress):
            self._host.update(dataclasses.replace(instance, stage=probe.stage, progress=progress))

    async def _watch(self) -> bool:
        """Wait until the engine ends or hangs; return whether it should be started again."""
        assert self.engine is not None
        reason = await self._wait_for_failure(self.engine)
        await self._stop_engine()  # kills child processes that the engine left behind
        instance = self._host.current(self.id)
        if instance.state is not InstanceState.READY:
            return False  # it was being drained; the unloader finishes that
        restart = restart_delay_s(instance, self._clock.unix())
        self._host.count_failure(self.id, reason.kind)
        self._host.record_event("engine_crashed", logging.ERROR, instance=self.id, kind=reason.kind)
        if restart is None:
            await self._fail(reason.message, reason.kind)
            return False
        delay, crashes = restart
        self._host.update(
            advance(
                instance,
                InstanceState.LOADING,
                crashes=crashes,
                held_mb=self._host.held_mb(self.id),
                failure=str(reason.kind),
                stage=f"restarting in {delay:.0f} s after a crash",
                error=reason.message,
            )
        )
        await asyncio.sleep(delay)
        return True

    async def _wait_for_failure(self, engine: EngineProcess) -> ExitReason:
        interval, failed_probes = self._settings.health_interval_s, 0
        while failed_probes < _MAX_FAILED_PROBES:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.wait(), interval)
                return self._exit_reason(engine)
            healthy = await self._is_healthy(min(interval, _MAX_HEALTH_TIMEOUT_S))
            failed_probes = 0 if healthy else failed_probes + 1
        return ExitReason(
            ExitKind.HUNG,
            f"the engine did not answer {_MAX_FAILED_PROBES} consecutive health checks",
        )

    def _exit_reason(self, engine: EngineProcess) -> ExitReason:
        return classify(engine.status, self._log.tail(_LOG_TAIL_LINES), engine.oom_kills)

    async def _is_healthy(self, timeout_s: float) -> bool:
        instance = self._host.current(self.id)
        url = self.url(instance.port)
        with contextlib.suppress(TimeoutError):
            probe = await asyncio.wait_for(self._harness.probe(instance.spec, url), timeout_s)
            return probe.ready
        return False


class _PortTaken(LoadFailed):
    """Another process listens on the port that was free when it was chosen."""


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
        self._started = self._last_change = clock.monotonic()
        self._last: object = None

    def check(self, stage: str | None, signals: object) -> None:
        """Compare the stage and other signals of progress with those of the last call.

        Raises:
            UpstreamTimeout: a limit is exceeded.
        """
        now = self._clock.monotonic()
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
