"""Who may be evicted for whom."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop
from operator import itemgetter

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_server.placement.capacity import NodeRoom, frees, is_serving
from cortex_server.placement.eviction import UNKNOWN, Standing, Victim, Worth, least_worth, worth
from cortex_server.placement.fit import Shape
from cortex_server.placement.policy import Policy, Strategy
from cortex_server.placement.state import Wish, World

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

    def within_reach(self, rooms: Iterable[NodeRoom], shape: Shape) -> list[NodeRoom]:
        """Nodes that could have the room at all with everybody gone who may go at this tier."""
        kind, last, need = shape.kind, shape.devices - 1, shape.size.device_mb
        busy = self._tier >= BUSY
        found: list[NodeRoom] = []
        for room in rooms:
            reach = (room.ready_reach if busy else room.idle_reach).get(kind, ())
            if len(reach) > last and reach[last] >= need:
                found.append(room)
        return found

    def by_bound(self, rooms: Sequence[NodeRoom], shape: Shape) -> Iterator[tuple[Worth, NodeRoom]]:
        """Each node after a worth that no set of victims there falls short of, the least first.

        Most are never asked for, so what can be left undone until then is.
        """
        if self._tier >= BUSY:
            for room in rooms:
                yield (), room
        elif self.policy.strategy is Strategy.LRU:
            yield from self._by_last_use(rooms, shape)
        else:
            yield from self._by_least_model(rooms)

    def _by_last_use(
        self, rooms: Sequence[NodeRoom], shape: Shape
    ) -> Iterator[tuple[Worth, NodeRoom]]:
        asked = (shape.kind, shape.devices, shape.size.device_mb)
        bounds = [
            (_find_latest(room, *asked) if (known := room.latest.get(asked)) is None else known, at)
            for at, room in enumerate(rooms)
        ]
        heapify(bounds)
        while bounds:
            bound, at = heappop(bounds)
            yield (bound,), rooms[at]

    def _by_least_model(self, rooms: Sequence[NodeRoom]) -> Iterator[tuple[Worth, NodeRoom]]:
        """By the least that the idle models of a node can be worth.

        Models are gone through from the least on, some of one worth and then twice as many each time, and the nodes
        found that have them.
        """
        least = {
            m: self._least_worth(m) for m in frozenset[ModelId]().union(*(r.idle for r in rooms))
        }
        levels: dict[float, list[ModelId]] = {}
        for model, what in least.items():
            levels.setdefault(what, []).append(model)
        ranked = sorted(levels)
        left, begin, count = rooms, 0, 1
        while left and begin < len(ranked):
            some = frozenset(m for what in ranked[begin : begin + count] for m in levels[what])
            having = [r for r in left if not some.isdisjoint(r.idle)]
            if len(having) == len(left):
                left = ()
            elif having:
                left = [r for r in left if some.isdisjoint(r.idle)]
            if count == 1:
                found = [(ranked[begin], r) for r in having]
            else:
                found = [(min(map(least.__getitem__, some & r.idle)), r) for r in having]
                found.sort(key=itemgetter(0))
            for what, room in found:
                yield (what,), room
            begin, count = begin + count, 2 * count
        for room in left:
            yield (NEVER,), room

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

    def _least_worth(self, model: ModelId) -> float:
        return least_worth(self.policy.strategy, self._standing(model))

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


def _find_latest(room: NodeRoom, kind: DeviceKind, count: int, need_mb: int) -> float:
    """When the last idle instance was used that has to go, at best, oldest first on each device; remembered."""
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
    found.sort()
    latest = found[count - 1] if len(found) >= count else NEVER
    room.latest[kind, count, need_mb] = latest
    return latest
