"""What an operator can do with models: each verb checks, hands over to the conductor, and tells what became of it."""

from __future__ import annotations

import asyncio
import logging

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelProfile
from cortex_common.errors import CortexError, NodeNotFound, NotFound
from cortex_common.fleet import InstanceView, ModelState
from cortex_common.logs import event
from cortex_common.models import InstanceId, InstanceState, ModelId
from cortex_common.operator import LoadModel, ModelAction, UnloadModel
from cortex_server.core.fit import Where
from cortex_server.core.rooms import TAKING_MEMORY
from cortex_server.core.waiting import Goal
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.conductor import Conductor

log = logging.getLogger("cortex.operator")


class Verbs:
    """See the module.

    Args:
        fleet: the live state.
        conductor: who decides.
        clock: for how long things took.
    """

    def __init__(self, fleet: Fleet, conductor: Conductor, clock: Clock) -> None:
        self._fleet = fleet
        self._conductor = conductor
        self._clock = clock
        self._pursued: set[asyncio.Task[InstanceId]] = set()

    async def load(self, wish: LoadModel) -> ModelAction:
        """Have a model loaded.

        Raises:
            ModelNotFound: no profile has this name.
            CortexError: as `Conductor.obtain`; without `wait` only what is known at once.
        """
        profile = self.profile(wish.model)
        if wish.node is not None:
            self.check_node(wish.node)
        began = self._clock.monotonic()
        goal = Goal(profile.id, Where(wish.node, wish.devices))
        event(log, "load_asked", model=profile.id, node=wish.node)
        task = asyncio.create_task(self._conductor.want(profile, goal, timeout_s=wish.timeout_s))
        self._pursued.add(task)
        task.add_done_callback(self._pursuit_ended)
        if wish.wait:
            instance = await task
            return self._ready(profile, instance, self._clock.monotonic() - began)
        # Two rounds: the first hears of the wish, after the second it is answered or under way.
        await self._conductor.settled()
        await asyncio.sleep(0)
        if task.done():
            return self._ready(profile, task.result(), self._clock.monotonic() - began)
        progress = self._conductor.progress(profile.id)
        nodes = (progress.node,) if progress is not None and progress.node else ()
        return ModelAction(model=profile.id, state=ModelState.LOADING, nodes=nodes)

    async def unload(self, wish: UnloadModel) -> ModelAction:
        """Drain and end all instances of a model.

        Raises:
            ModelNotFound: no profile and no instance has this name.
            StillBusy: requests went on for longer than `drain_timeout_s`; nothing was ended.
        """
        model = self.model(wish.model)
        began = self._clock.monotonic()
        views = self.instances(model)
        event(log, "unload_asked", model=model, instances=len(views))
        await self._conductor.unload(model, views, wish.drain_timeout_s, whole=True)
        return ModelAction(
            model=model,
            state=ModelState.UNLOADED,
            nodes=tuple(dict.fromkeys(v.node for v in views)),
            seconds=self._clock.monotonic() - began,
        )

    async def close(self) -> None:
        """Stop pursuing loads that nobody waits for."""
        for task in self._pursued:
            task.cancel()
        await asyncio.gather(*self._pursued, return_exceptions=True)

    # -- names -------------------------------------------------------------------------------

    def model(self, name: str) -> ModelId:
        """The model that a name or alias means.

        Raises:
            ModelNotFound: with the nearest names.
        """
        if (found := self._fleet.known(name)) is not None:
            return found
        if any(i.model == name for i in self._fleet.snapshot.instances()):
            return ModelId(name)
        raise self._fleet.names.not_found(name)

    def profile(self, name: str) -> ModelProfile:
        """The profile that a name or alias means.

        Raises:
            ModelNotFound: with the nearest names.
        """
        found = self._fleet.profile(self.model(name))
        if found is None:
            raise self._fleet.names.not_found(name)
        return found

    def check_node(self, name: str) -> None:
        """Refuse a node that is not in the configuration.

        Raises:
            NodeNotFound: with the names that are.
        """
        if name not in self._fleet.entries:
            known = ", ".join(self._fleet.entries) or "none"
            raise NodeNotFound(f"there is no node {name!r}", hints=(f"nodes: {known}",))

    def instances(self, model: ModelId) -> tuple[InstanceView, ...]:
        """The instances of a model that a node holds, failed ones included.

        Raises:
            NotFound: it has none.
        """
        kept = TAKING_MEMORY | {InstanceState.FAILED}
        found = tuple(
            i for i in self._fleet.snapshot.instances() if i.model == model and i.state in kept
        )
        if not found and not self._conductor.waiting(model):
            raise NotFound(f"model {model!r} is not loaded", hints=("cortex ps",))
        return found

    def _ready(self, profile: ModelProfile, instance: InstanceId, seconds: float) -> ModelAction:
        views = [i for i in self._fleet.snapshot.instances() if i.id == instance]
        return ModelAction(
            model=profile.id,
            state=ModelState.READY,
            nodes=tuple(v.node for v in views),
            seconds=seconds,
            vram_mb=max((v.vram_used_mb for v in views), default=None),
        )

    def _pursuit_ended(self, task: asyncio.Task[InstanceId]) -> None:
        self._pursued.discard(task)
        if not task.cancelled() and isinstance(failed := task.exception(), CortexError):
            event(log, "load_failed", logging.WARNING, reason=failed.message)
