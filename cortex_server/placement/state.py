"""The inputs of a plan: the state of the cluster, and what is to be placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.placement.capacity import NodeCapacity
from cortex_server.placement.eviction import ModelStats, StatsByModel
from cortex_server.placement.fit import ANYWHERE, Floors, PlacementConstraints, Sizes


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster as a plan sees it.

    Attributes:
        capacities: the capacity of every node.
        now: Unix seconds.
        sizes: sizes of models that are known beyond their model configs.
        stats: statistics of models beyond their instances.
        nodes_with_weights: by model, the nodes that have loaded it before and therefore have its weights on disk.
    """

    capacities: Sequence[NodeCapacity]
    now: float
    sizes: Sizes = field(default_factory=dict)
    stats: StatsByModel = field(default_factory=dict[ModelId, ModelStats])
    nodes_with_weights: Mapping[ModelId, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """A model to be placed.

    Attributes:
        model_config: the model's config.
        constraints: the node and devices that it must be placed on.
        waited_s: seconds that the oldest request has waited; the longer, the busier the instances that may be evicted.
        replica: place a further instance, regardless of instances that are ready or loading.
        may_evict: whether other instances may be evicted.
        protected: instances that must not be evicted because they recently failed to drain.
        excluded_nodes: nodes that recently refused or lost the model.
        floors: what it needs at least on devices where its engine ran out of memory.
    """

    model_config: ModelConfig
    constraints: PlacementConstraints = ANYWHERE
    waited_s: float = 0.0
    replica: bool = False
    may_evict: bool = True
    protected: frozenset[InstanceId] = frozenset()
    excluded_nodes: frozenset[str] = frozenset()
    floors: Floors = field(default_factory=dict)
