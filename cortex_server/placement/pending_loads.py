"""Loads under way: what is to be carried out, how far it is, and who carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cortex_common.config.catalogue import ModelProfile
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.load_queue import Goal
from cortex_server.placement.planner import Load


class Stage(StrEnum):
    """How far a load is."""

    MAKING_ROOM = "making_room"
    STARTING = "starting"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class Order:
    """A load that is to be carried out.

    Attributes:
        known: the copies of the model that the node was known to have; another that it has begun with serves as well.
            None when none but this does.
    """

    instance: InstanceId
    profile: ModelProfile
    plan: Load
    known: frozenset[InstanceId] | None = None


@dataclass(slots=True)
class Underway:
    """A load and how far it is; times are monotonic seconds.

    Attributes:
        unreachable_since: since when its node does not answer.
        seen: the node has shown it.
    """

    order: Order
    goal: Goal
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

    def make_room(self, order: Order) -> None:
        """Drain and unload the evictions of a load; answered by `room_made` or `room_failed`."""
        ...

    def start(self, order: Order) -> None:
        """Ask the node; answered by `admitted`, `refused` or `failed`."""
        ...

    def abandon(self, order: Order) -> None:
        """Stop making room, as nobody wants the load any more."""
        ...

    def take_back(self, order: Order) -> None:
        """End what a node has begun with, as an operator has unloaded the model since it was asked."""
        ...
