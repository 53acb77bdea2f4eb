"""Who may be evicted for whom."""

from __future__ import annotations

from cortex_common.fleet import InstanceView
from cortex_common.models import InstanceId, InstanceState, ModelId
from cortex_server.core.evict import UNKNOWN, Choice, Standing, Victim, Worth, worth
from cortex_server.core.policy import Policy, Strategy
from cortex_server.core.rooms import NodeRoom, frees, is_serving
from cortex_server.core.world import Wish, World


class Guard:
    """Who may be evicted for a wish at a tier: 0 idle and settled, 1 also young, 2 also busy."""

    def __init__(self, world: World, policy: Policy, wish: Wish, tier: int) -> None:
        self._world = world
        self._policy = policy
        self._spared = wish.spared
        self._model = ModelId(wish.profile.id)
        self._tier = tier
        self._models: dict[InstanceId, ModelId] = {}
        self._ready: dict[ModelId, int] = {}

    def bound(self, room: NodeRoom) -> Worth:
        """No set of victims on this node is worth less; infinite when nobody there may go."""
        if self._policy.strategy is Strategy.LRU and self._tier < 2:
            return (room.oldest,)
        found = [self._worth(i) for i in room.instances if self._may_go(i)]
        return min(found, default=(float("inf"),))

    def candidates(self, room: NodeRoom) -> list[Victim]:
        """Instances of the node that may go."""
        found = [i for i in room.instances if self._may_go(i)]
        self._models |= {i.id: i.model for i in found}
        return [Victim(i.id, frees(i), self._worth(i)) for i in found]

    def keeps_enough(self, choice: Choice) -> bool:
        """Whether every model keeps the instances that its profile wants kept."""
        going: dict[ModelId, int] = {}
        for victim in choice.victims:
            model = self._models[victim.id]
            going[model] = going.get(model, 0) + 1
        return all(
            self._ready_count(model) - n >= self._standing(model).keep
            for model, n in going.items()
            if self._standing(model).keep
        )

    def _may_go(self, instance: InstanceView) -> bool:
        if instance.pinned or instance.state is not InstanceState.READY:
            return False
        if instance.model == self._model or instance.id in self._spared:
            return False
        if instance.in_flight:
            return self._tier >= 2
        if self._tier == 0 and self._is_young(instance):
            return False
        keep = self._standing(instance.model).keep
        return not keep or self._ready_count(instance.model) > keep

    def _is_young(self, instance: InstanceView) -> bool:
        took = instance.load_seconds or 0.0
        ready_for = self._world.now - instance.started_at - took
        return ready_for < min(took, self._policy.min_residency_s)

    def _standing(self, model: ModelId) -> Standing:
        return self._world.standings.get(model, UNKNOWN)

    def _worth(self, instance: InstanceView) -> Worth:
        return worth(self._policy.strategy, instance, self._standing(instance.model))

    def _ready_count(self, model: ModelId) -> int:
        if model not in self._ready:
            self._ready[model] = sum(
                i.model == model and is_serving(room, i)
                for room in self._world.rooms
                if model in room.models
                for i in room.instances
            )
        return self._ready[model]
