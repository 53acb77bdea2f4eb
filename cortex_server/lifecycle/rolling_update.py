"""Replaces instances whose model config has changed, one at a time and while idle, and unloads those without one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView, NodeState
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

RETRY_INTERVAL_S = 30.0
"""Seconds after which an instance that could not be unloaded is tried again."""


class RollingUpdate:
    """Replaces stale instances.

    Args:
        fleet: live state of the nodes.
        controller: unloads and loads.
        catalogue: the model configs that the instances were loaded with.
        clock: for the time until a failed replacement is tried again.
    """

    def __init__(
        self, fleet: Fleet, controller: Controller, catalogue: Catalogue, clock: Clock
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self._controller = controller
        self._model_configs = _by_id(catalogue)
        self._stale: set[InstanceId] = set()
        self._removed: set[InstanceId] = set()
        self._not_before: dict[InstanceId, float] = {}
        self._checked_nodes: set[str] = set()

    def use_catalogue(self, catalogue: Catalogue) -> int:
        """Replace the model configs.

        Returns:
            The number of instances that are stale because their model config has changed.
        """
        previous, self._model_configs = self._model_configs, _by_id(catalogue)
        changed = {
            name
            for name, model_config in self._model_configs.items()
            if name in previous and model_config.config_hash != previous[name].config_hash
        }
        self._stale |= {
            i.id
            for i in self._fleet.snapshot.instances()
            if i.model in changed and not self._fleet.is_upstream(i.node)
        }
        removed = previous.keys() - self._model_configs.keys()
        self._removed |= {
            i.id
            for i in self._fleet.snapshot.instances()
            if i.model in removed and not self._fleet.is_upstream(i.node)
        }
        return len(self._stale)

    async def run(self) -> None:
        """Replace stale idle instances and unload those of removed models, one at a time, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self._check_new_nodes()
            if self._stale or self._removed:
                await self._advance()

    def _check_new_nodes(self) -> None:
        """Find instances that an earlier gateway started with another model config.

        Only when a node is seen for the first time: an instance that differs later was started by another gateway, with
        a newer config than this one's, and two gateways must not replace each other's instances in turn.
        """
        for node in self._fleet.node_snapshot.nodes:
            if node.name in self._checked_nodes or node.state is not NodeState.UP:
                continue
            self._checked_nodes.add(node.name)
            for instance in node.instances:
                model_config = self._model_configs.get(instance.model)
                current = model_config.config_hash if model_config is not None else None
                if current is not None and instance.config not in {None, current}:
                    self._stale.add(instance.id)

    async def _advance(self) -> None:
        """Deal with one instance; one that can't be unloaded, such as on a dead node, does not hold up the others."""
        views = {i.id: i for i in self._fleet.snapshot.instances()}
        self._stale &= views.keys()
        self._removed &= {i for i, v in views.items() if v.model not in self._model_configs}
        now = self._clock.monotonic()
        due = [v for i, v in views.items() if self._fleet.is_up(v.node) and self._is_due(i, now)]
        removed = next((v for v in due if v.id in self._removed), None)
        idle = next((v for v in due if v.id in self._stale and _is_idle(v)), None)
        try:
            if removed is not None:
                await self._unload_removed(removed)
            elif idle is not None:
                await self._replace(idle)
        except CortexError as error:
            view = removed or idle
            assert view is not None
            self._not_before[view.id] = now + RETRY_INTERVAL_S
            event(
                log,
                "replacement_failed",
                logging.WARNING,
                model=view.model,
                node=view.node,
                instance=view.id,
                reason=error.message,
            )

    def _is_due(self, instance: InstanceId, now: float) -> bool:
        return self._not_before.get(instance, 0.0) <= now

    async def _unload_removed(self, view: InstanceView) -> None:
        """Drain and unload an instance whose model is no longer in the catalogue."""
        event(log, "removed_model_unloading", model=view.model, node=view.node, instance=view.id)
        drain_s = self._controller.drain_timeout_s
        await self._controller.unload(
            view.model, (view,), drain_s, cancel_requests=False, reason="config_change"
        )
        self._removed.discard(view.id)

    async def _replace(self, view: InstanceView) -> None:
        model_config = self._model_configs.get(view.model)
        if model_config is None:
            return
        event(log, "replacement_started", model=view.model, node=view.node, instance=view.id)
        await self._controller.unload(
            view.model, (view,), DRAIN_TIMEOUT_S, cancel_requests=False, reason="config_change"
        )
        self._stale.discard(view.id)
        await self._controller.ensure_loaded(
            model_config, LoadKey(model_config.id), timeout_s=LOAD_TIMEOUT_S
        )


def _by_id(catalogue: Catalogue) -> Mapping[str, ModelConfig]:
    return {model_config.id: model_config for model_config in catalogue.models}


def _is_idle(view: InstanceView) -> bool:
    return view.state is InstanceState.READY and not view.in_flight
