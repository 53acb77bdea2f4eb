"""The possible outcomes of planning, from serving at once to impossible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_common.schema.instances import InstanceId
from cortex_server.placement.explain import Refusal
from cortex_server.placement.fit import Shape


@dataclass(frozen=True, slots=True)
class Serve:
    """Instances are ready."""

    instances: tuple[InstanceId, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """A load is pending on this node; the instance is None when the node does not report it yet."""

    node: str
    instance: InstanceId | None


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model on a node, after some evictions.

    Attributes:
        node: the node.
        devices: indices of its devices.
        shape: the layout, with the MiB per device.
        evictions: instances to evict first, lowest cost first.
        reason: the reason for the choice, as text for people.
        card: name of the devices.
        offered_mb: MiB by device that are available once the evictions are done.
    """

    node: str
    devices: tuple[int, ...]
    shape: Shape
    evictions: tuple[InstanceId, ...]
    reason: str
    card: str = ""
    offered_mb: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """Memory will become available, but not now.

    Attributes:
        instances: the instances that hold it.
        reason: what is waited for, as text for people.
    """

    instances: tuple[InstanceId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Impossible:
    """Waiting would not help.

    Attributes:
        refusals: reasons by node and device, at most `planner.MAX_REFUSALS`; `explain.refusals` gives all.
        no_node: no candidate node is up, or one that would do is down.
        cordoned: nodes that would do if they were not cordoned.
    """

    refusals: tuple[Refusal, ...]
    no_node: bool
    cordoned: tuple[str, ...] = ()


Plan = Serve | Join | Load | Wait | Impossible
