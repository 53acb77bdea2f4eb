"""Small fleets for tests of placement: written by hand, or drawn by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

from hypothesis import strategies as st

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, InstanceView, NodeState, NodeView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import CapacityCache
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.overlay import Overlay, Reservation
from cortex_server.placement.state import ClusterState

NOW = 1_700_000_000.0


def model_config(model: str, vram_mb: int | None = 100, **more: object) -> ModelConfig:
    """Return a model config of the harness `fake`."""
    return ModelConfig.model_validate({"id": model, "harness": "fake", "vram_mb": vram_mb} | more)


def device(index: int, total_mb: int = 1000, **more: object) -> DeviceView:
    """Return an empty GPU."""
    base = DeviceView(
        index=index,
        uuid=f"GPU-{index}",
        kind=DeviceKind.CUDA,
        name="H200",
        vram_total_mb=total_mb,
        vram_available_mb=total_mb,
        compute_capability="9.0",
    )
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


def instance(
    model: str, node: str = "n1", devices: tuple[int, ...] = (0,), mb: int = 100, **more: object
) -> InstanceView:
    """Return a ready, idle instance past its minimum residency, with `mb` on each device."""
    base = InstanceView(
        id=InstanceId(f"{model}@{node}/{'-'.join(map(str, devices))}"),
        model=ModelId(model),
        node=node,
        harness="fake",
        state=InstanceState.READY,
        devices=devices,
        vram_used_mb=mb * len(devices),
        vram_by_device=(mb,) * len(devices),
        vram_measured_mb=(mb,) * len(devices),
        load_seconds=1.0,
        started_at=NOW - 3600,
        last_used=NOW - 600,
    )
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


def node(
    name: str,
    devices: tuple[DeviceView, ...],
    instances: tuple[InstanceView, ...] = (),
    **more: object,
) -> NodeView:
    """Return a node whose devices have less available memory by what its instances use, as a ledger reports it."""
    held: dict[int, int] = {}
    for i in instances:
        for index, mb in zip(i.devices, i.vram_by_device, strict=True):
            held[index] = held.get(index, 0) + mb
    base = NodeView(
        name=name,
        endpoint=f"http://{name}",
        state=NodeState.UP,
        harnesses=("fake",),
        devices=tuple(
            replace(d, vram_available_mb=d.vram_available_mb - held.get(d.index, 0))
            for d in devices
        ),
        instances=instances,
    )
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


def cluster(
    *nodes: NodeView,
    overlay: Overlay | None = None,
    stats: dict[ModelId, ModelStats] | None = None,
    **more: object,
) -> ClusterState:
    """Return the cluster state of these nodes."""
    capacities = CapacityCache().capacities(FleetSnapshot(1, NOW, nodes), overlay or Overlay())
    base = ClusterState(capacities=capacities, now=NOW, stats=stats or {})
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


# Strategies are made once and draw several facts at a time: making and drawing them is most of such a test's time.
_STATES = (
    [InstanceState.READY] * 5
    + [InstanceState.LOADING, InstanceState.DRAINING, InstanceState.STOPPING, InstanceState.FAILED]
)  # fmt: skip
_COUNTS = st.integers(1, 4)
_TOTALS = st.sampled_from([200, 400, 800])
_INSTANCES = st.integers(0, 6)
_CHOICES = {
    count: st.sampled_from([(i,) for i in range(count)] + list(combinations(range(count), 2)))
    for count in range(1, 5)
}
_KINDS = st.sampled_from(
    list(product(["H200", "L40"], [DeviceKind.CUDA] * 3 + [DeviceKind.CPU]))
)  # fmt: skip
_CONDITIONS = st.sampled_from(
    list(product([NodeState.UP] * 4 + [NodeState.UNREACHABLE], [False] * 5 + [True]))
)
_TRAITS = st.sampled_from(
    list(
        product(
            "abcde",
            _STATES,
            [False] * 5 + [True],  # pinned
            [0, 0, 0, 1],  # in flight
            [5000, 5, 0.5],  # seconds since its start
            [0.1, 20.0],  # seconds its load took
        )
    )
)
_AGES = st.integers(0, 1000)
_STANDINGS = st.lists(
    st.sampled_from(
        [
            ModelStats(priority=priority, reload_s=reload_s, rate=rate, min_replicas=keep)
            for priority, reload_s, rate, keep in product(
                [0, 1, 2], [1.0, 30.0], [0.0, 0.01, 1.0], [0, 0, 0, 1]
            )
        ]
    ),
    min_size=5,
    max_size=5,
)
_NODES_WITH_WEIGHTS = st.sampled_from([frozenset(s) for s in ((), ("n0",), ("n1",), ("n0", "n1"))])
_FLEETS = st.integers(0, 4)
_PROMISED = st.integers(0, 3)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> NodeView:
    """Generate a node of up to 4 devices with instances that fit on them."""
    count = draw(_COUNTS)
    totals = [draw(_TOTALS) for _ in range(count)]
    free = list(totals)
    placed: list[InstanceView] = []
    for at in range(draw(_INSTANCES)):
        chosen = draw(_CHOICES[count])
        most = min(free[d] for d in chosen)
        if most < 10:
            continue
        mb = draw(st.integers(10, most))
        for d in chosen:
            free[d] -= mb
        model, state, pinned, in_flight, started, load_s = draw(_TRAITS)
        placed.append(
            instance(
                model,
                name,
                chosen,
                mb,
                id=InstanceId(f"{name}-{at}"),
                state=state,
                pinned=pinned,
                in_flight=in_flight if state is InstanceState.READY else 0,
                last_used=NOW - draw(_AGES),
                started_at=NOW - started,
                load_seconds=load_s,
            )
        )
    cards = []
    for i, total in enumerate(totals):
        card, kind = draw(_KINDS)
        cards.append(device(i, total, name=card, kind=kind))
    state, cordoned = draw(_CONDITIONS)
    return node(name, tuple(cards), tuple(placed), state=state, cordoned=cordoned)


_NODES = [nodes(f"n{i}") for i in range(4)]


@st.composite
def clusters(draw: st.DrawFn) -> ClusterState:
    """Generate a fleet of up to 4 nodes."""
    drawn = [draw(_NODES[i]) for i in range(draw(_FLEETS))]
    stats = dict(zip(map(ModelId, "abcde"), draw(_STANDINGS), strict=True))
    nodes_with_weights = {ModelId("f"): draw(_NODES_WITH_WEIGHTS)}
    reservations: list[Reservation] = []
    for n in drawn:
        if draw(_PROMISED) == 0:
            capacity = n.devices[0].vram_available_mb
            mb = draw(st.integers(0, capacity))
            reservations.append(
                Reservation(InstanceId(f"{n.name}-z"), ModelId("z"), n.name, (0,), mb)
            )
    overlay = Overlay(reservations=tuple(reservations))
    return cluster(*drawn, overlay=overlay, stats=stats, nodes_with_weights=nodes_with_weights)


_VRAM = st.one_of(st.none(), st.integers(10, 1600))
_WANTED = st.sampled_from(
    list(product([1, 1, 1, 2], [None, 4], [False, True], [None, None, "cuda", "cpu"], [0, 0, 300]))
)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Generate a model that none of the drawn fleets has loaded."""
    least, most, mixed, kind, card_mb = draw(_WANTED)
    return model_config(
        "f",
        draw(_VRAM),
        min_devices=least,
        max_devices=most,
        mixed_devices=mixed,
        device_kind=kind,
        min_device_vram_mb=card_mb,
    )
