"""The life of a model inside an engine that someone else runs: loaded and unloaded by its own calls, and watched."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterable, Mapping

from cortex_common.clock import Clock
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.harness.base import AttachedHarness
from neuron_server.instances.runner import RunnerHost
from neuron_server.instances.state_machine import Instance, advance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.exit_reason import ExitKind

log = logging.getLogger(__name__)

MOST_WATCH_S = 2.0
"""Seconds between looks at a model that somebody else may unload, at most."""


class AttachedRunner:
    """Like `runner.EngineLife`, without a process.

    Args:
        instance: whose life.
        harness: the engine.
        ledger: the runtime.
        clock: for durations and times.
        watch_s: seconds between looks at the engine.
    """

    engine: EngineProcess | None = None

    def __init__(
        self,
        instance: InstanceId,
        harness: AttachedHarness,
        ledger: RunnerHost,
        clock: Clock,
        watch_s: float = MOST_WATCH_S,
    ) -> None:
        self.id = instance
        self._harness = harness
        self._ledger = ledger
        self._clock = clock
        self._watch_s = watch_s
        self._task: asyncio.Task[None] | None = None

    def url(self, port: int) -> str:  # noqa: ARG002 - other engines' URLs depend on it
        """Base URL of the engine."""
        return self._harness.url

    def begin(self, adopted: EngineProcess | None = None) -> None:  # noqa: ARG002 - there is no process to adopt
        """Load the model, then watch it."""
        self._task = asyncio.create_task(self._live(), name=f"life of {self.id}")

    async def end(self) -> None:
        """Unload the model."""
        await self.let_go()
        try:
            await self._harness.unload(self._ledger.now(self.id).spec)
        except CortexError as failed:  # an engine that is gone holds nothing
            self._ledger.note(
                "unload_failed", logging.WARNING, instance=self.id, reason=failed.message
            )

    async def let_go(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _live(self) -> None:
        instance = self._ledger.now(self.id)
        try:
            await self._become_ready(instance)
            while await self._still_loaded():
                pass
        except CortexError as failed:
            self._ledger.failed(self.id, failed.code)
            self._fail(failed.message)
        except Exception as failed:
            log.exception("instance_life_broke", extra={"facts": {"instance": self.id}})
            self._ledger.failed(self.id, CortexError.code)
            self._fail(f"internal error: {failed!r}")

    async def _become_ready(self, instance: Instance) -> None:
        begun = self._clock.monotonic()
        probe = await self._harness.load(instance.spec)
        await self._ledger.measure()
        seconds = round(self._clock.monotonic() - begun, 3)
        ready = advance(
            self._ledger.now(self.id),
            InstanceState.READY,
            ready_at=self._clock.unix(),
            load_seconds=instance.load_seconds or seconds,
            engine_version=probe.version,
            context=instance.spec.context,
            parallel=instance.spec.parallel,
        )
        self._ledger.change(ready)
        self._ledger.note("instance_ready", instance=self.id, model=instance.spec.model_id)

    async def _still_loaded(self) -> bool:
        """Look again after a while; False once somebody else unloaded the model or the engine is gone."""
        await asyncio.sleep(self._watch_s)
        models = await self._harness.loaded()
        instance = self._ledger.now(self.id)
        if instance.state is not InstanceState.READY:
            return False
        name = instance.spec.source or instance.spec.model_id
        if models is not None and models.get(name, False):
            return True
        gone = models is None
        if gone:
            self._ledger.failed(self.id, ExitKind.HUNG)
        self._fail("the engine does not answer" if gone else "somebody else unloaded it")
        return False

    def _fail(self, why: str) -> None:
        self._ledger.note("instance_failed", logging.WARNING, instance=self.id, reason=why)
        instance = self._ledger.now(self.id)
        self._ledger.change(advance(instance, InstanceState.FAILED, error=why))


def loaded_by_others(
    harness: str, models: Mapping[str, bool], known: Iterable[Instance], now: float
) -> list[Instance]:
    """Models that are loaded in an engine of someone else's and are no instances yet.

    Args:
        harness: that drives the engine.
        models: see `AttachedHarness.loaded`.
        known: the instances in it that are no failures.
        now: Unix seconds.
    """
    names = {instance.spec.source or instance.spec.model_id for instance in known}
    return [
        Instance(
            id=InstanceId(f"{harness}-{zlib.crc32(name.encode()):08x}"),
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
