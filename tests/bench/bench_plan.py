"""How long a plan takes on a large fleet: python tests/bench/bench_plan.py [NODES [DEVICES [MODELS]]].

Prints one line per scenario, in milliseconds of CPU time, which other processes on the host do not affect.
Plans use a snapshot with cached capacities; "capacities, cold" builds all of them, and "one node changed" is what a
gateway does at each event of a node.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import (
    DeviceView,
    FleetSnapshot,
    InstanceView,
    ModelState,
    ModelView,
    NodeState,
    NodeView,
)
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.lifecycle.measurements import CurrentStats, Measurements
from cortex_server.placement.capacity import CapacityCache
from cortex_server.placement.fit import size_key
from cortex_server.placement.planner import plan
from cortex_server.placement.policy import Policy, Prefer, Strategy
from cortex_server.placement.records import Measurement
from cortex_server.placement.state import ClusterState, PlacementRequest

NOW = 1_700_000_000.0
TOTAL_MB = 140_000
SMALLEST_MB = 38_000


def full_node(name: str, devices: int, models: int, rng: random.Random) -> NodeView:
    """Return a node whose devices are full of one to three models each; every fourth is busy, every tenth pinned."""
    free = [TOTAL_MB] * devices
    instances: list[InstanceView] = []
    for device in range(devices):
        while free[device] > SMALLEST_MB:
            mb = min(rng.choice([40_000, 70_000, 130_000]), free[device])
            free[device] -= mb
            last = NOW - rng.uniform(0, 7200)
            instances.append(
                InstanceView(
                    id=InstanceId(f"{name}-{len(instances)}"),
                    model=ModelId(f"model-{rng.randrange(models)}"),
                    node=name,
                    harness="vllm",
                    state=InstanceState.READY,
                    devices=(device,),
                    vram_used_mb=mb,
                    vram_by_device=(mb,),
                    load_seconds=30.0,
                    started_at=last - 3600,
                    last_used=last,
                    in_flight=int(rng.random() < 0.25),
                    pinned=rng.random() < 0.1,
                )
            )
    cards = tuple(
        DeviceView(
            index=i,
            uuid=f"{name}-{i}",
            kind=DeviceKind.CUDA,
            name="H200",
            vram_total_mb=TOTAL_MB,
            vram_available_mb=free[i],
            compute_capability="9.0",
        )
        for i in range(devices)
    )
    return NodeView(
        name=name,
        endpoint=f"http://{name}",
        state=NodeState.UP,
        harnesses=("vllm",),
        devices=cards,
        instances=tuple(instances),
    )


def known(models: int, rng: random.Random) -> CurrentStats:
    """Return the models' statistics of loads and requests; a few models get most requests."""
    model_configs = {
        name: ModelConfig.model_validate({"id": name, "harness": "vllm"})
        for name in (f"model-{m}" for m in range(models))
    }
    loads = (
        Measurement(
            size_key(model_config, DeviceKind.CUDA, 1),
            "H200",
            "",
            "n",
            SMALLEST_MB,
            rng.uniform(5, 90),
            NOW,
        )
        for model_config in model_configs.values()
    )
    measurements = Measurements(loads)
    counted = tuple(
        ModelView(ModelId(name), ModelState.READY, requests=int(1000 * rng.random() ** 4))
        for name in model_configs
    )
    measurements.observe(FleetSnapshot(1, NOW, (), counted), {}, 0.0)
    return CurrentStats(measurements, model_configs, 60.0)


def milliseconds(work: Callable[[], object], times: int = 30) -> str:
    """Return the median and the worst of some runs."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append((time.process_time() - began) * 1000)
    return f"{statistics.median(taken):7.2f} ms (worst {max(taken):.2f})"


def main(nodes: int = 1000, devices: int = 8, models: int = 500) -> None:
    """Run all scenarios."""
    rng = random.Random(7)
    made = tuple(full_node(f"n{i:04}", devices, models, rng) for i in range(nodes))
    snapshot = FleetSnapshot(1, NOW, made)
    capacities = CapacityCache()
    stats = known(models, rng)
    cluster = ClusterState(capacities=capacities.capacities(snapshot), now=NOW, stats=stats)
    instances = len(snapshot.instances())
    print(f"{nodes} nodes x {devices} devices, {models} models, {instances} instances, all full\n")

    def show(name: str, request: PlacementRequest, policy: Policy) -> None:
        kind = type(plan(request, cluster, policy)).__name__
        print(f"{name:<52}{kind:<12}{milliseconds(lambda: plan(request, cluster, policy))}")

    def model_config(name: str, mb: int, **more: object) -> ModelConfig:
        return ModelConfig.model_validate(
            {"id": name, "harness": "vllm", "vram_mb": mb, "device_kind": "cuda"} | more
        )

    new = model_config("new", 60_000)
    show("ready already", PlacementRequest(model_config("model-3", 60_000)), Policy())
    show("fits somewhere", PlacementRequest(model_config("new", 10_000)), Policy())
    show(
        "fits somewhere, spread",
        PlacementRequest(model_config("new", 10_000)),
        Policy(prefer=Prefer.SPREAD),
    )
    for strategy in Strategy:
        show(f"needs an eviction, {strategy}", PlacementRequest(new), Policy(strategy=strategy))
    four = model_config("new", 400_000, min_devices=4)
    for strategy in Strategy:
        show(
            f"evictions on 4 devices at once, {strategy}",
            PlacementRequest(four),
            Policy(strategy=strategy),
        )
    show(
        "impossible, with a reason per device",
        PlacementRequest(model_config("new", 200_000)),
        Policy(),
    )

    print()
    print(
        f"{'capacities, cold':<64}{milliseconds(lambda: CapacityCache().capacities(snapshot), 5)}"
    )
    print(
        f"{'capacities, nothing changed':<64}{milliseconds(lambda: capacities.capacities(snapshot))}"
    )
    turn = iter(range(10**9))

    def one_changed() -> None:
        at = next(turn) % nodes
        changed = replace(made[at], seen_at=NOW + next(turn))
        capacities.capacities(replace(snapshot, nodes=(*made[:at], changed, *made[at + 1 :])))

    print(f"{'capacities, one node changed':<64}{milliseconds(one_changed)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
