"""Moves models back from the CPU once a GPU has the memory for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.placement.fit import PlacementConstraints
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.plans import Load
from cortex_server.placement.state import PlacementRequest

log = logging.getLogger("cortex.lifecycle")

CHECK_INTERVAL_S = 10.0
RETRY_INTERVAL_S = 300.0
"""Seconds after a failed move before the model is tried again."""

LOAD_TIMEOUT_S = 3600.0
_ON_GPU = PlacementConstraints(kind=DeviceKind.CUDA)


class GpuReturn:
    """Loads a copy on a GPU, without evictions, and then drains the instance on the CPU; one model at a time.

    Args:
        fleet: live state of the nodes.
        controller: plans, loads and unloads.
        catalogue: the model configs.
        clock: for intervals.
    """

    def __init__(
        self, fleet: Fleet, controller: Controller, catalogue: Catalogue, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._controller = controller
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self.use_catalogue(catalogue)

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the model configs."""
        self._model_configs = {p.id: p for p in catalogue.models}

    async def run(self) -> None:
        """Move models until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if self._controller.planning.policy.prefer_gpu:
                await self.move_one()

    async def move_one(self) -> bool:
        """Move one model, if one can be moved now; return whether it was moved."""
        now = self._clock.monotonic()
        for view in instances_on_cpu(self._fleet.snapshot, self._model_configs):
            model_config = self._model_configs[view.model]
            if now >= self._not_before.get(view.model, 0.0) and self._fits_on_gpu(model_config):
                try:
                    await self._move(view, model_config)
                except CortexError as error:
                    self._not_before[view.model] = self._clock.monotonic() + RETRY_INTERVAL_S
                    event(log, "gpu_return_failed", logging.WARNING, model=view.model, reason=error)
                    return False
                return True
        return False

    def _fits_on_gpu(self, model_config: ModelConfig) -> bool:
        request = PlacementRequest(model_config, _ON_GPU, replica=True, may_evict=False)
        plan, _ = self._controller.planning.plan(request)
        return isinstance(plan, Load)

    async def _move(self, view: InstanceView, model_config: ModelConfig) -> None:
        event(log, "gpu_return_started", model=view.model, node=view.node, instance=view.id)
        key = LoadKey(model_config.id, _ON_GPU, replica=True, may_evict=False)
        await self._controller.ensure_loaded(model_config, key, timeout_s=LOAD_TIMEOUT_S)
        await self._controller.unload(
            view.model,
            (view,),
            self._controller.drain_timeout_s,
            cancel_requests=False,
            reason="gpu_return",
        )


def instances_on_cpu(
    snapshot: FleetSnapshot, model_configs: Mapping[str, ModelConfig]
) -> list[InstanceView]:
    """Return the ready instances on the CPU of models that could use a GPU, and have no instance on one."""
    on_cpu: list[InstanceView] = []
    on_gpu: set[str] = set()
    for node in snapshot.nodes:
        cpus = {d.index for d in node.devices if d.kind is DeviceKind.CPU}
        for view in node.instances:
            if not view.devices or node.state is not NodeState.UP:
                continue
            if not cpus.issuperset(view.devices):
                on_gpu.add(view.model)
            elif view.state is InstanceState.READY and not view.pinned:
                on_cpu.append(view)
    return [
        view
        for view in on_cpu
        if view.model not in on_gpu
        and (model_config := model_configs.get(view.model)) is not None
        and model_config.device_kind is None
    ]
