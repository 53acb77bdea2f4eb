"""What plans are made from and for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.placement.capacity import NodeCapacity
from cortex_server.placement.eviction import ModelStats, StatsByModel
from cortex_server.placement.fit import ANYWHERE, PlacementConstraints, Sizes


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a plan is made from.

    Attributes:
        rooms: every node with its room.
        now: Unix seconds.
        sizes: what is known about sizes beyond the profiles.
        standings: what is known about models beyond their instances.
        stored: names of the nodes that have loaded a model before, whose disk therefore has its weights.
    """

    capacities: Sequence[NodeCapacity]
    now: float
    sizes: Sizes = field(default_factory=dict)
    stats: StatsByModel = field(default_factory=dict[ModelId, ModelStats])
    stored: Mapping[ModelId, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What is wanted.

    Attributes:
        profile: of the model.
        where: on which node and devices.
        waited_s: how long the one who waits longest has waited; how much may be disturbed depends on it.
        replica: a further instance, whatever is ready or loading already.
        may_evict: whether others may go for it.
        spared: instances that lately would not drain.
        avoid: nodes that lately refused or lost it.
    """

    model_config: ModelConfig
    where: PlacementConstraints = ANYWHERE
    waited_s: float = 0.0
    replica: bool = False
    may_evict: bool = True
    spared: frozenset[InstanceId] = frozenset()
    avoid: frozenset[str] = frozenset()
