"""Replaces instances whose model config has changed, one at a time and while idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.placement.load_queue import LoadKey

log = logging.getLogger("cortex.lifecycle")

CHECK_INTERVAL_S = 1.0
DRAIN_TIMEOUT_S = 5.0
"""A request that arrives just before an idle instance is unloaded may finish; if it takes longer, the instance stays
for now."""

LOAD_TIMEOUT_S = 3600.0


class RollingUpdate:
    """Replaces stale instances.

    Args:
        fleet: live state of the nodes.
        controller: unloads and loads.
        catalogue: the model configs that the instances were loaded with.
    """

    def __init__(self, fleet: Fleet, controller: Controller, catalogue: Catalogue) -> None:
        self._fleet = fleet
        self._controller = controller
        self._model_configs = _by_id(catalogue)
        self._stale: set[InstanceId] = set()

    def use_catalogue(self, catalogue: Catalogue) -> int:
        """Replace the model configs.

        Returns:
            The number of instances that are stale because their model config has changed.
        """
        previous, self._model_configs = self._model_configs, _by_id(catalogue)
        changed = {
            name
            for name, model_config in self._model_configs.items()
            if name in previous and model_config.spec() != previous[name].spec()
        }
        self._stale |= {
            i.id
            for i in self._fleet.snapshot.instances()
            if i.model in changed and not self._fleet.is_upstream(i.node)
        }
        return len(self._stale)

    async def run(self) -> None:
        """Replace stale idle instances, one at a time, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if self._stale:
                try:
                    await self._replace_one()
                except CortexError as error:
                    event(log, "replacement_failed", logging.WARNING, reason=error.message)

    async def _replace_one(self) -> None:
        views = {i.id: i for i in self._fleet.snapshot.instances()}
        self._stale &= views.keys()
        idle = next((views[i] for i in self._stale if _is_idle(views[i])), None)
        model_config = None if idle is None else self._model_configs.get(idle.model)
        if idle is None or model_config is None:
            return
        event(log, "replacement_started", model=idle.model, node=idle.node, instance=idle.id)
        await self._controller.unload(
            idle.model, (idle,), DRAIN_TIMEOUT_S, cancel_requests=False, reason="config_change"
        )
        self._stale.discard(idle.id)
        await self._controller.ensure_loaded(
            model_config, LoadKey(model_config.id), timeout_s=LOAD_TIMEOUT_S
        )


def _by_id(catalogue: Catalogue) -> Mapping[str, ModelConfig]:
    return {model_config.id: model_config for model_config in catalogue.models}


def _is_idle(view: InstanceView) -> bool:
    return view.state is InstanceState.READY and not view.in_flight
