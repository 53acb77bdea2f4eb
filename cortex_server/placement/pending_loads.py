"""Loads under way: what is to be carried out, how far it is, and who carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.planner import Load


class Stage(StrEnum):
    """How far a load is."""

    MAKING_ROOM = "evicting"
    STARTING = "starting"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A load that is to be carried out.

    Attributes:
        known: the copies of the model that the node was known to have; another that it has begun with serves as well.
            None when none but this does.
    """

    instance: InstanceId
    model_config: ModelConfig
    plan: Load
    known: frozenset[InstanceId] | None = None


@dataclass(slots=True)
class PendingLoad:
    """A load and how far it is; times are monotonic seconds.

    Attributes:
        unreachable_since: since when its node does not answer.
        seen: the node has shown it.
    """

    order: LoadOrder
    key: LoadKey
    stage: Stage
    since: float
    seen: bool = False
    unreachable_since: float | None = None


class Effects(Protocol):
    """What the scheduler wants done. Called on the conductor's task; must return at once."""

    def grant(self, waiter: int, instance: InstanceId) -> None:
        """Tell a waiter that this instance is ready."""
        ...

    def refuse(self, waiter: int, error: CortexError) -> None:
        """Tell a waiter that it waits in vain."""
        ...

    def make_room(self, order: LoadOrder) -> None:
        """Drain and unload the evictions of a load; answered by `room_made` or `room_failed`."""
        ...

    def start(self, order: LoadOrder) -> None:
        """Ask the node; answered by `admitted`, `refused` or `failed`."""
        ...

    def abandon(self, order: LoadOrder) -> None:
        """Stop making room, as nobody wants the load any more."""
        ...

    def cancel_load(self, order: LoadOrder) -> None:
        """End what a node has begun with, as an operator has unloaded the model since it was asked."""
        ...
