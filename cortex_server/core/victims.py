"""Who may be evicted for whom."""

from __future__ import annotations

from bisect import bisect_left

from cortex_common.fleet import InstanceView
from cortex_common.hardware import DeviceKind
from cortex_common.models import InstanceState, ModelId
from cortex_server.core.evict import UNKNOWN, Standing, Victim, Worth, least_worth, worth
from cortex_server.core.fit import Shape
from cortex_server.core.policy import Policy, Strategy
from cortex_server.core.rooms import NodeRoom, frees, is_serving
from cortex_server.core.world import Wish, World

SETTLED, YOUNG, BUSY, ANY = range(4)
"""Tiers of who may go: idle and settled instances; idle ones that were loaded lately too; busy settled ones too; and
at last busy ones that were loaded lately. The last comes late, or models that are all busy would take turns faster
than they load."""

NEVER = float("inf")


class Guard:
    """Who may be evicted for a wish at a tier.

    Args:
        world: what there is.
        policy: of the operator.
        wish: for whom.
        tier: SETTLED, YOUNG, BUSY or ANY.
    """

    def __init__(self, world: World, policy: Policy, wish: Wish, tier: int) -> None:
        self.policy = policy
        self.wish = wish
        self._world = world
        self._model = ModelId(wish.profile.id)
        self._tier = tier
        self._ready: dict[ModelId, int] = {}
        self._least = _Least(world, policy)

    def reaches(self, room: NodeRoom, shape: Shape) -> bool:
        """Whether the node could have the room at all with everybody gone who may go at this tier."""
        reach = room.ready_reach if self._tier >= BUSY else room.idle_reach
        found = reach.get(shape.kind, ())
        return len(found) >= shape.devices and found[shape.devices - 1] >= shape.size.device_mb

    def bound(self, room: NodeRoom, shape: Shape) -> Worth:
        """No set of victims on this node that makes the room is worth less."""
        if self._tier >= BUSY:
            return ()
        if self.policy.strategy is Strategy.LRU:
            return (_latest_needed(room, shape.kind, shape.devices, shape.size.device_mb),)
        return (min(map(self._least.__getitem__, room.idle), default=NEVER),)

    def candidates(self, room: NodeRoom) -> list[Victim]:
        """Instances of the node that may go, the least worth first; not more of a model than it can spare."""
        found = [(self._worth(i), i.id, i) for i in room.instances if self._may_go(i)]
        found.sort(key=lambda v: v[:2])
        spare: dict[ModelId, int] = {}
        kept: list[Victim] = []
        for what, _, i in found:
            keep = self._standing(i.model).keep
            if keep:
                left = spare.setdefault(i.model, self._ready_count(i.model) - keep)
                if left <= 0:
                    continue
                spare[i.model] = left - 1
            kept.append(Victim(i.id, frees(i), what))
        return kept

    def _may_go(self, instance: InstanceView) -> bool:
        if instance.pinned or instance.state is not InstanceState.READY:
            return False
        if instance.model == self._model or instance.id in self.wish.spared:
            return False
        if instance.in_flight and self._tier < BUSY:
            return False
        spared = self._tier == (BUSY if instance.in_flight else SETTLED)
        return not spared or not self._is_young(instance)

    def _is_young(self, instance: InstanceView) -> bool:
        took = instance.load_seconds or 0.0
        ready_for = self._world.now - instance.started_at - took
        return ready_for < min(took, self.policy.min_residency_s)

    def _standing(self, model: ModelId) -> Standing:
        return self._world.standings.get(model, UNKNOWN)

    def _worth(self, instance: InstanceView) -> Worth:
        return worth(self.policy.strategy, instance, self._standing(instance.model))

    def _ready_count(self, model: ModelId) -> int:
        if model not in self._ready:
            self._ready[model] = sum(
                i.model == model and is_serving(room, i)
                for room in self._world.rooms
                if model in room.models
                for i in room.instances
            )
        return self._ready[model]


class _Least(dict[ModelId, float]):
    """The least that an instance of each model can be worth, worked out when first asked for."""

    def __init__(self, world: World, policy: Policy) -> None:
        super().__init__()
        self._world = world
        self._policy = policy

    def __missing__(self, model: ModelId) -> float:
        standing = self._world.standings.get(model, UNKNOWN)
        found = least_worth(self._policy.strategy, standing)
        self[model] = found
        return found


def _latest_needed(room: NodeRoom, kind: DeviceKind, count: int, need_mb: int) -> float:
    """When the last idle instance was used that has to go, at best, oldest first on each device."""
    asked = (kind, count, need_mb)
    if (known := room.latest.get(asked)) is None:
        known = room.latest[asked] = _find_latest(room, kind, count, need_mb)
    return known


def _find_latest(room: NodeRoom, kind: DeviceKind, count: int, need_mb: int) -> float:
    found: list[float] = []
    for device in room.devices:
        if device.kind is not kind:
            continue
        lack = need_mb - device.available_mb
        freed, used = room.stairs.get(device.index, ((), ()))
        if lack <= 0:
            found.append(float("-inf"))
        elif (at := bisect_left(freed, lack)) < len(freed):
            found.append(used[at])
    if len(found) < count:
        return float("inf")
    found.sort()
    return found[count - 1]
