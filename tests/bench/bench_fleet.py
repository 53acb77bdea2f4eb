"""CPU time of the events of a large fleet: python tests/bench/bench_fleet.py [NODES [DEVICES [INSTANCES]]].

Milliseconds of CPU time in a gateway. "report" is one node's message with everything that follows from it; each node
sends one per second.
"""

from __future__ import annotations

import sys

from bench_plan import NOW, TOTAL_MB, milliseconds

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import NeuronEntry
from cortex_common.schema.hardware import Device, DeviceReading, Discovery, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from cortex_server.placement.capacity import CapacityCache

MODELS = 500
MB = 40_000


def discovery(devices: int) -> Discovery:
    """Return the discovery of a host."""
    cards = tuple(
        Device(index=i, uuid=f"GPU-{i}", name="H200", vram_total_mb=TOTAL_MB)
        for i in range(devices)
    )
    return Discovery(hostname="host", os="linux", kernel="6", devices=cards, harnesses=("vllm",))


def status(node: int, devices: int, instances: int) -> NodeStatus:
    """Return the status that a host reports."""
    readings = tuple(
        DeviceReading(index=i, vram_used_mb=MB, vram_free_mb=TOTAL_MB - MB, vram_available_mb=MB)
        for i in range(devices)
    )
    infos = tuple(
        ModelInfo(
            id=ModelId(f"model-{(node * instances + i) % MODELS}"),
            harness="vllm",
            status=InstanceState.READY,
            devices=(i % devices,),
            vram_used_mb=MB,
            vram_by_device=(MB,),
            instance_id=InstanceId(f"{node}-{i}"),
            url=f"http://n{node}:{8000 + i}",
            started_at=NOW,
        )
        for i in range(instances)
    )
    return NodeStatus(health=Health(uptime_secs=1.0, devices=readings), models=infos)


def main(nodes: int = 1000, devices: int = 8, instances: int = 4000) -> None:
    """Run all scenarios."""
    names = [f"n{i:04}" for i in range(nodes)]
    model_configs = tuple(ModelConfig(id=f"model-{i}", harness="vllm") for i in range(MODELS))
    entries = tuple(NeuronEntry(name=n, endpoint=f"http://{n}:9090") for n in names)
    fleet = Fleet(entries, Catalogue(models=model_configs), SystemClock(), Metrics())
    statuses = [status(i, devices, instances // nodes) for i in range(nodes)]
    for name, said in zip(names, statuses, strict=True):
        fleet.update_discovery(name, discovery(devices))
        fleet.update_status(name, said)
    print(f"{nodes} nodes x {devices} devices, {len(fleet.node_snapshot.instances())} instances\n")
    turn = iter(range(10**9))
    capacities = CapacityCache()

    def report() -> None:
        at = next(turn) % nodes
        fleet.update_status(names[at], statuses[at])

    def request() -> None:
        target = fleet.ready(f"model-{next(turn) % MODELS}")[0]
        fleet.begin_request(target)
        fleet.end_request(target)

    def after_a_request() -> None:
        request()
        capacities.capacities(fleet.node_snapshot)

    def show(name: str, what: str) -> None:
        print(f"{name:<48}{what}")

    show("report of one node", milliseconds(report))
    show("a request counted, and counted off", milliseconds(request))
    show("snapshot, nothing changed", milliseconds(lambda: fleet.snapshot))
    show("snapshot for placement, nothing changed", milliseconds(lambda: fleet.node_snapshot))
    show("snapshot and capacities after a request", milliseconds(after_a_request))
    fleet.use_catalogue(Catalogue(models=model_configs))
    show("snapshot, all views rebuilt", milliseconds(lambda: fleet.snapshot, 1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
