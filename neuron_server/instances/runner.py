"""The runner of an instance: starts its engine, waits until it is ready, watches it, and restarts it after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from cortex_common.backoff import Backoff
from cortex_common.clock import Clock
from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import CortexError, LoadFailed
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.harness.base import Probe, ProcessHarness
from neuron_server.harness.registry import TokenProbe
from neuron_server.instances.liveness import LivenessMonitor
from neuron_server.instances.load_deadline import LoadDeadline
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import (
    advance,
    load_deadline_s,
    load_progress,
    restart_delay_s,
)
from neuron_server.instances.witness import EngineWitness
from neuron_server.process.blocking import run_blocking
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.exit_reason import ExitKind, ExitReason, classify
from neuron_server.process.process_table import listening_pids, read_process, read_table
from neuron_server.process.program import run_program
from neuron_server.process.supervisor import Launch, Supervisor
from neuron_server.process.tcp_progress import has_moved
from neuron_server.weights.files import FILES_TIMEOUT_S, stalled_files_error

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = (0.05, 0.5)
"""Seconds between probes of a loading engine: the first, and the longest."""
_PORT_ATTEMPTS = 3
_RETRY_BACKOFF = Backoff(initial_s=0.2, max_s=10.0)
_LOG_TAIL_LINES = 500
"""Enough for vLLM, which prints an error and its stack once per process that it passes through, the cause first."""
_MAX_HEALTH_TIMEOUT_S = 5.0
_DRAIN_S = 300.0
"""Seconds that the requests of an engine that must be restarted can continue while they make progress."""
_DRAIN_QUIET_S = 10.0
"""Seconds without progress after which its requests are not waited for any longer."""
_DRAIN_POLL_S = 0.5


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
        probe_token: asks an engine for a token; None if that kind can't be asked.
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
        probe_token: TokenProbe | None = None,
    ) -> None:
        self._probe_token = probe_token
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
        self._failing = False

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

    def fail(self, reason: str, kind: str) -> None:
        """Take the instance out of service now, stop its engine, and mark it as failed."""
        if self._task is None or self._failing:
            return
        self._failing = True
        self._begin_loading("stopping", reason, kind)
        self._host.count_failure(self.id, kind)
        watching, self._task = (
            self._task,
            asyncio.create_task(
                self._abort(self._task, reason, kind), name=f"failure of {self.id}"
            ),
        )
        watching.cancel()

    async def _abort(self, watching: asyncio.Task[None], reason: str, kind: str) -> None:
        await asyncio.gather(watching, return_exceptions=True)
        await self._fail(reason, kind)

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
            launch = self._current_launch()
            if launch.stop_argv:
                await run_program(*launch.stop_argv, env=launch.env)
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
                await self._start_engine()
            try:
                return await self._wait_until_ready(started)
            except _PortTaken:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
                await self._stop_engine()
                port = self._host.pick_port(self.id)
                self._host.update(dataclasses.replace(self._host.current(self.id), port=port))
        raise AssertionError("the last attempt returns or raises")

    async def _start_engine(self) -> None:
        instance = self._host.current(self.id)
        try:  # looks for the weights, which can be on a share that stalls
            launch = await run_blocking(partial(self._launch, instance.port), FILES_TIMEOUT_S)
        except TimeoutError as error:
            raise stalled_files_error(instance.spec) from error
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

    def _current_launch(self) -> Launch:
        """Return the launch of the engine on its port; an empty one if its weights are gone meanwhile."""
        try:
            return self._launch(self._host.current(self.id).port)
        except CortexError:
            return Launch(argv=())

    async def _find_container(self) -> None:
        """Find the first process of the engine's container, so that memory can be attributed to it."""
        assert self.engine is not None
        launch = self._current_launch()
        if self.engine.container is None and launch.pid_argv:
            printed = (await run_program(*launch.pid_argv, env=launch.env) or "").strip()
            if printed.isdecimal() and int(printed) > 0:
                self.engine.container = read_process(int(printed))

    async def _probe(self) -> Probe:
        await self._find_container()
        instance = self._host.current(self.id)
        probe = await self._harness.probe(instance.spec, self.url(instance.port))
        if not probe.ready:
            return probe
        assert self.engine is not None
        if self.engine.container is not None:
            return probe  # the port can be published by the container's runtime
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
        """Wait until the engine ends or must be restarted; return whether it should be started again."""
        assert self.engine is not None
        witness = EngineWitness(self.id, self.engine, self._host, self._is_healthy)
        reason = await self._wait_for_failure(self.engine, witness)
        if reason.kind is ExitKind.FAILING and self._is_ready():
            await self._drain(witness, reason)
        await self._stop_engine()  # kills child processes that the engine left behind
        instance = self._host.current(self.id)
        if instance.state not in {InstanceState.READY, InstanceState.LOADING}:
            return False  # it was being drained; the unloader finishes that
        restart = restart_delay_s(instance, self._clock.unix())
        self._host.count_failure(self.id, reason.kind)
        self._host.forget_failures(self.id)
        self._host.record_event(
            "engine_crashed",
            logging.ERROR,
            instance=self.id,
            kind=reason.kind,
            reason=reason.message,
        )
        if restart is None:
            await self._fail(reason.message, reason.kind)
            return False
        delay, crashes = restart
        stage = f"restarting in {delay:.0f} s after a crash"
        self._begin_loading(stage, reason.message, reason.kind, crashes=crashes)
        await asyncio.sleep(delay)
        return True

    def _is_ready(self) -> bool:
        return self._host.current(self.id).state is InstanceState.READY

    def _begin_loading(self, stage: str, reason: str, kind: str, **changes: Any) -> None:
        """Take the instance out of service until its engine is started again."""
        instance = self._host.current(self.id)
        changes |= {"stage": stage, "error": reason, "failure": str(kind)}
        if instance.state is InstanceState.LOADING:
            self._host.update(dataclasses.replace(instance, **changes))
        else:
            changes["held_mb"] = self._host.held_mb(self.id)
            self._host.update(advance(instance, InstanceState.LOADING, **changes))

    async def _drain(self, witness: EngineWitness, reason: ExitReason) -> None:
        """Keep new requests away, and wait for those in flight while they make progress."""
        self._host.record_event(
            "engine_unhealthy", logging.ERROR, instance=self.id, reason=reason.message
        )
        self._begin_loading("draining before a restart", reason.message, reason.kind)
        now = self._clock.monotonic()
        deadline, quiet_since, sent = now + _DRAIN_S, now, witness.sent()
        while await witness.in_flight() and self._clock.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
            before, sent = sent, witness.sent()
            if has_moved(before, sent):
                quiet_since = self._clock.monotonic()
            elif self._clock.monotonic() - quiet_since > _DRAIN_QUIET_S:
                return

    async def _wait_for_failure(self, engine: EngineProcess, witness: EngineWitness) -> ExitReason:
        interval_s = self._settings.health_interval_s
        probe = None if self._probe_token is None else self._answers_token_request
        monitor = LivenessMonitor(witness, probe, self._clock, interval_s)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.wait(), interval_s)
                return self._exit_reason(engine)
            if (reason := await monitor.check()) is not None:
                return reason

    async def _answers_token_request(self) -> bool:
        assert self._probe_token is not None
        instance = self._host.current(self.id)
        model = instance.served_as or instance.spec.model_id
        return await self._probe_token(self.url(instance.port), model)

    def _exit_reason(self, engine: EngineProcess) -> ExitReason:
        return classify(engine.status, self._log.tail(_LOG_TAIL_LINES), engine.oom_kills)

    async def _is_healthy(self) -> bool:
        instance = self._host.current(self.id)
        url = self.url(instance.port)
        timeout_s = min(self._settings.health_interval_s, _MAX_HEALTH_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            probe = await asyncio.wait_for(self._harness.probe(instance.spec, url), timeout_s)
            return probe.ready
        return False


class _PortTaken(LoadFailed):
    """Another process listens on the port that was free when it was chosen."""
