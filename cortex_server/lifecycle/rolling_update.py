"""Replaces instances whose profile has changed, each when nobody uses it."""

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

LOOK_EVERY_S = 1.0
DRAIN_S = 5.0
"""A request that comes just as an idle instance is to go may end; if it takes longer, the instance stays for now."""

LOAD_S = 3600.0


class RollingUpdate:
    """See the module.

    Args:
        fleet: where instances are seen.
        conductor: who unloads and loads.
        catalogue: the profiles that what is loaded was loaded by.
    """

    def __init__(self, fleet: Fleet, controller: Controller, catalogue: Catalogue) -> None:
        self._fleet = fleet
        self._controller = controller
        self._model_configs = _by_id(catalogue)
        self._stale: set[InstanceId] = set()

    def use(self, catalogue: Catalogue) -> int:
        """Take new profiles over.

        Returns:
            How many instances are stale because what they were loaded by has changed.
        """
        old, self._model_configs = self._model_configs, _by_id(catalogue)
        changed = {
            name
            for name, model_config in self._model_configs.items()
            if name in old and model_config.spec() != old[name].spec()
        }
        self._stale |= {
            i.id
            for i in self._fleet.snapshot.instances()
            if i.model in changed and not self._fleet.is_upstream(i.node)
        }
        return len(self._stale)

    async def run(self) -> None:
        """Replace what is stale and idle, one at a time; runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._stale:
                try:
                    await self._replace_one()
                except CortexError as failed:
                    event(log, "renewal_failed", logging.WARNING, reason=failed.message)

    async def _replace_one(self) -> None:
        views = {i.id: i for i in self._fleet.snapshot.instances()}
        self._stale &= views.keys()
        idle = next((views[i] for i in self._stale if _is_idle(views[i])), None)
        model_config = None if idle is None else self._model_configs.get(idle.model)
        if idle is None or model_config is None:
            return
        event(log, "renewing", model=idle.model, node=idle.node, instance=idle.id)
        await self._controller.unload(
            idle.model, (idle,), DRAIN_S, whole=False, why="config_change"
        )
        self._stale.discard(idle.id)
        await self._controller.want(model_config, LoadKey(model_config.id), timeout_s=LOAD_S)


def _by_id(catalogue: Catalogue) -> Mapping[str, ModelConfig]:
    return {model_config.id: model_config for model_config in catalogue.models}


def _is_idle(view: InstanceView) -> bool:
    return view.state is InstanceState.READY and not view.in_flight
