"""The runner of a model inside an attached engine: loads and unloads it through the engine's API, and watches it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping

from cortex_common.clock import Clock
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.harness.base import AttachedHarness
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import Instance, advance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.exit_reason import ExitKind

log = logging.getLogger(__name__)

MAX_WATCH_INTERVAL_S = 2.0
"""Longest interval between checks of a model, which other clients of the engine can unload."""


class AttachedRunner:
    """Runs an instance in an engine that this node does not start.

    Args:
        instance: the instance's id.
        harness: the adapter for the engine.
        host: the runtime.
        clock: measures durations and provides timestamps.
        watch_interval_s: seconds between checks of the engine.
    """

    engine: EngineProcess | None = None

    def __init__(
        self,
        instance: InstanceId,
        harness: AttachedHarness,
        host: RunnerHost,
        clock: Clock,
        watch_interval_s: float = MAX_WATCH_INTERVAL_S,
    ) -> None:
        self.id = instance
        self._harness = harness
        self._host = host
        self._clock = clock
        self._watch_interval_s = watch_interval_s
        self._task: asyncio.Task[None] | None = None

    def url(self, port: int) -> str:  # noqa: ARG002 - other engines' URLs depend on it
        """Return the base URL of the engine."""
        return self._harness.url

    def start(self, adopted: EngineProcess | None = None) -> None:  # noqa: ARG002 - there is no process to adopt
        """Load the model and watch it from then on, in a task."""
        self._task = asyncio.create_task(self._run(), name=f"runner of {self.id}")

    async def stop(self) -> None:
        """Unload the model."""
        await self.detach()
        try:
            await self._harness.unload(self._host.current(self.id).spec)
        except CortexError as error:  # an engine that is gone holds no model
            self._host.record_event(
                "unload_failed", logging.WARNING, instance=self.id, reason=error.message
            )

    def fail(self, reason: str, kind: str) -> None:
        """Do nothing: the devices of an attached engine are not known."""

    async def detach(self) -> None:
        """Stop watching; the model stays loaded."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        instance = self._host.current(self.id)
        try:
            await self._load(instance)
            while await self._still_loaded():
                pass
        except CortexError as error:
            self._host.count_failure(self.id, error.code)
            self._fail(error.message, error.code)
        except Exception as error:
            log.exception("runner_failed", extra={"fields": {"instance": self.id}})
            self._host.count_failure(self.id, CortexError.code)
            self._fail(f"internal error: {error!r}", CortexError.code)

    async def _load(self, instance: Instance) -> None:
        started = self._clock.monotonic()
        probe = await self._harness.load(instance.spec)
        await self._host.measure()
        seconds = round(self._clock.monotonic() - started, 3)
        ready = advance(
            self._host.current(self.id),
            InstanceState.READY,
            ready_at=self._clock.unix(),
            load_seconds=instance.load_seconds or seconds,
            engine_version=probe.version,
            context=instance.spec.context,
            parallel=instance.spec.parallel,
        )
        self._host.update(ready)
        self._host.record_event("instance_ready", instance=self.id, model=instance.spec.model_id)

    async def _still_loaded(self) -> bool:
        """Check again after the interval; return False once the model is unloaded or the engine is gone."""
        await asyncio.sleep(self._watch_interval_s)
        models = await self._harness.list_models()
        instance = self._host.current(self.id)
        if instance.state is not InstanceState.READY:
            return False
        name = instance.spec.source or instance.spec.model_id
        if models is not None and models.get(name, False):
            return True
        if models is None:
            self._host.count_failure(self.id, ExitKind.HUNG)
            self._fail("the engine does not respond", ExitKind.HUNG)
        else:
            self._fail("another client of the engine unloaded it", ExitKind.ENDED)
        return False

    def _fail(self, reason: str, kind: str) -> None:
        self._host.record_event("instance_failed", logging.WARNING, instance=self.id, reason=reason)
        instance = self._host.current(self.id)
        self._host.update(advance(instance, InstanceState.FAILED, error=reason, failure=str(kind)))


def externally_loaded(
    node_id: str,
    harness: str,
    models: Mapping[str, bool],
    existing: Iterable[Instance],
    now: float,
) -> list[Instance]:
    """Return new instances for models that other clients of an attached engine have loaded.

    Args:
        node_id: id of the node, because the ids of the instances must differ from those of other nodes.
        harness: name of the engine's harness.
        models: see `AttachedHarness.list_models`.
        existing: the engine's instances, failed ones excluded.
        now: Unix seconds.
    """
    names = {instance.spec.source or instance.spec.model_id for instance in existing}
    return [
        Instance(
            id=InstanceId(f"{harness}-{_digest(node_id, name)}"),
            spec=LoadSpec(model_id=name, harness=harness),
            devices=(),
            granted_mb=0,
            port=0,
            started_at=now,
            attached=True,
        )
        for name, loaded in models.items()
        if loaded and name not in names
    ]


def _digest(node_id: str, name: str) -> str:
    return hashlib.sha256(f"{node_id}\0{name}".encode()).hexdigest()[:12]
