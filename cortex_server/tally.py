"""What happened to instances, counted for the metrics: loads, unloads and their reasons, drains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cortex_common.schema.instances import InstanceId, InstanceState, ModelInfo, NodeStatus
from cortex_server.histogram import Histogram

_LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)


class Tally:
    """Plain counts that only grow.

    Attributes:
        loads: by model, node and outcome ("ready", "failed").
        load_seconds: of the loads that became ready, by model and node.
        unloads: by node and reason: "room" for evictions that make room, "idle", "operator", "defrag", "drain",
            "profile".
        restarts: of engines of somebody else, by node, harness and outcome: "restarted", "kept" when another
            gateway had it done, "busy" when requests did not end in time, "failed".
        drains: by outcome: "idle" when the requests ended in time, "busy" when they did not.
    """

    def __init__(self) -> None:
        self.loads: Counter[tuple[str, str, str]] = Counter()
        self.load_seconds: dict[tuple[str, str], Histogram] = {}
        self.unloads: Counter[tuple[str, str]] = Counter()
        self.drains: Counter[str] = Counter()
        self.restarts: Counter[tuple[str, str, str]] = Counter()

    def reported(self, node: str, before: NodeStatus | None, now: NodeStatus) -> None:
        """Count the loads that ended between two reports of a node."""
        loading = _loading(before)
        for info in now.models:
            if info.instance_id in loading:
                self._ended(node, info)

    def _ended(self, node: str, info: ModelInfo) -> None:
        if info.status is InstanceState.FAILED:
            self.loads[info.id, node, "failed"] += 1
        elif info.status is InstanceState.READY:
            self.loads[info.id, node, "ready"] += 1
            if info.load_seconds is not None:
                found = self.load_seconds.setdefault((info.id, node), Histogram(_LOAD_SECONDS))
                found.observe(info.load_seconds)


def _loading(status: NodeStatus | None) -> Mapping[InstanceId, ModelInfo]:
    models = () if status is None else status.models
    return {i.instance_id: i for i in models if i.status is InstanceState.LOADING}
