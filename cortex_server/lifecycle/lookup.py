"""What operators' names refer to: models, model configs, instances and nodes, or the error that says what is near."""

from __future__ import annotations

from collections.abc import Callable
from shlex import quote

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, ModelNotFound, NodeNotFound, NotFound
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_common.schema.operations import EvictModelRequest
from cortex_server.fleet.state import Fleet
from cortex_server.placement.capacity import MEMORY_HOLDING_STATES


class Lookup:
    """Finds what an operator's request names.

    Args:
        snapshot: returns the fleet as operators see it.
        fleet: live state of the nodes.
        waiting_requests: returns the number of requests that wait for a model.
    """

    def __init__(
        self,
        snapshot: Callable[[], FleetSnapshot],
        fleet: Fleet,
        waiting_requests: Callable[[ModelId], int],
    ) -> None:
        self._snapshot = snapshot
        self._fleet = fleet
        self._waiting_requests = waiting_requests

    def model(self, name: str) -> ModelId:
        """Return the model that a name or alias refers to.

        Raises:
            ModelNotFound: with the nearest names.
        """
        if (model := self._fleet.resolve_model(name)) is not None:
            return model
        if any(i.model == name for i in self._fleet.snapshot.instances()):
            return ModelId(name)
        raise self._fleet.model_not_found(name)

    def model_config(self, name: str) -> ModelConfig:
        """Return the model config that a name or alias refers to.

        Raises:
            ModelNotFound: with the nearest names, or with the nodes that serve it without a model config.
        """
        model = self.model(name)
        if (model_config := self._fleet.model_config(model)) is None:
            nodes = {i.node: None for i in self._fleet.snapshot.instances() if i.model == model}
            raise ModelNotFound(
                f"{name!r} has no model config; it is only available where it is loaded: {', '.join(nodes)}",
                hints=("add a [[models]] entry to models.toml",),
            )
        return model_config

    def require_neuron(self, name: str) -> None:
        """Reject a node that is not configured, or has no neuron.

        Raises:
            NodeNotFound: with the nearest name.
            Conflict: it is an upstream.
        """
        if name not in self._fleet.entries:
            raise NodeNotFound.for_name(name, self._fleet.entries)
        if self._fleet.is_upstream(name):
            raise Conflict(f"{name} is an upstream: cortex cannot load or unload models there")

    def instances(self, model: ModelId) -> tuple[InstanceView, ...]:
        """Return the instances of a model that nodes hold, failed ones included.

        Raises:
            NotFound: it has none.
        """
        states = MEMORY_HOLDING_STATES | {InstanceState.FAILED}
        found = tuple(
            i for i in self._fleet.snapshot.instances() if i.model == model and i.state in states
        )
        if not found and not self._waiting_requests(model):
            raise NotFound(f"model {model!r} is not loaded", hints=("cortex ps",))
        return found

    def evictable_instance(self, request: EvictModelRequest) -> InstanceView:
        """Return the instance that an eviction removes: an idle one, least recently used, unless it is named.

        Raises:
            NotFound: there is no such instance or node.
            Conflict: it is pinned.
        """
        model = self.model(request.model)
        if request.node is not None:
            self.require_neuron(request.node)
        views = [
            i
            for i in self._snapshot().instances()
            if i.model == model
            and i.state in MEMORY_HOLDING_STATES
            and request.node in {None, i.node}
            and request.instance in {None, i.id}
        ]
        if not views:
            location = f" on {request.node}" if request.node else ""
            raise NotFound(f"model {model!r} has no instance{location}", hints=("cortex ps",))
        view = min(views, key=lambda i: (i.pinned, i.in_flight > 0, i.last_used))
        if view.pinned:
            raise Conflict(f"{view.id} is pinned", hints=(f"cortex models unpin {quote(model)}",))
        return view
