"""Pending loads: what is to be done, how far it is, and the interface that carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.plans import Load


class Stage(StrEnum):
    """The stage of a pending load."""

    EVICTING = "evicting"
    STARTING = "starting"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A load to be carried out.

    Attributes:
        instance: id of the new instance.
        model_config: the model's config.
        plan: where, and after which evictions.
        known_instances: instances of the model that the gateway knows on the node; any other that the node is loading
            already serves this order as well. None when only a new instance does.
    """

    instance: InstanceId
    model_config: ModelConfig
    plan: Load
    known_instances: frozenset[InstanceId] | None = None


@dataclass(slots=True)
class PendingLoad:
    """A load and its progress. Times are monotonic seconds.

    Attributes:
        order: what is to be done.
        key: what the requests wait for.
        stage: how far it is.
        stage_since: when it reached this stage.
        visible: its node has reported the instance.
        unreachable_since: when its node became unreachable.
    """

    order: LoadOrder
    key: LoadKey
    stage: Stage
    stage_since: float
    visible: bool = False
    unreachable_since: float | None = None


class Effects(Protocol):
    """What the scheduler causes. Called on the controller's task; must return immediately."""

    def grant(self, request_id: int, instance: InstanceId) -> None:
        """Answer a request: this instance is ready."""
        ...

    def refuse(self, request_id: int, error: CortexError) -> None:
        """Answer a request with an error."""
        ...

    def evict(self, order: LoadOrder) -> None:
        """Drain and unload the evictions of a load; answered by `evicted` or `eviction_failed`."""
        ...

    def start_load(self, order: LoadOrder) -> None:
        """Send the load to the node; answered by `admitted`, `refused` or `failed`."""
        ...

    def cancel_eviction(self, order: LoadOrder) -> None:
        """Stop draining, because no request waits for the load any longer."""
        ...

    def cancel_load(self, order: LoadOrder) -> None:
        """Unload what a node has started to load, because an operator has unloaded the model in the meantime."""
        ...
