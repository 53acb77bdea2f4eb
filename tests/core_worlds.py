"""Small fleets for tests of the pure cores: made by hand, or drawn by hypothesis."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from cortex_common.config.catalogue import ModelProfile
from cortex_common.fleet import DeviceView, FleetSnapshot, InstanceView, NodeState, NodeView
from cortex_common.hardware import DeviceKind
from cortex_common.models import InstanceId, InstanceState, ModelId
from cortex_server.core.evict import Standing
from cortex_server.core.rooms import Overlay, Promise, Rooms
from cortex_server.core.world import World

NOW = 1_700_000_000.0


def profile(model: str, vram_mb: int | None = 100, **more: object) -> ModelProfile:
    """A profile of the harness `fake`."""
    return ModelProfile.model_validate({"id": model, "harness": "fake", "vram_mb": vram_mb} | more)


def device(index: int, total_mb: int = 1000, **more: object) -> DeviceView:
    """An empty GPU."""
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
    """A ready, idle and settled instance with `mb` on each device."""
    base = InstanceView(
        id=InstanceId(f"{model}@{node}/{'-'.join(map(str, devices))}"),
        model=ModelId(model),
        node=node,
        harness="fake",
        state=InstanceState.READY,
        devices=devices,
        vram_used_mb=mb * len(devices),
        vram_by_device=(mb,) * len(devices),
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
    """A node whose devices lack what its instances hold, as a ledger would tell."""
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


def world(
    *nodes: NodeView,
    overlay: Overlay | None = None,
    standings: dict[ModelId, Standing] | None = None,
    **more: object,
) -> World:
    """A world of these nodes."""
    rooms = Rooms().of(FleetSnapshot(1, NOW, nodes), overlay or Overlay())
    base = World(rooms=rooms, now=NOW, standings=standings or {})
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


STATES = st.sampled_from(
    [InstanceState.READY] * 5
    + [InstanceState.LOADING, InstanceState.DRAINING, InstanceState.STOPPING, InstanceState.FAILED]
)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> NodeView:
    """A node of up to 4 devices with instances that fit on them."""
    count = draw(st.integers(1, 4))
    totals = [draw(st.sampled_from([200, 400, 800])) for _ in range(count)]
    free = list(totals)
    placed: list[InstanceView] = []
    for at in range(draw(st.integers(0, 6))):
        chosen = tuple(
            sorted(draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=min(2, count))))
        )
        most = min(free[d] for d in chosen)
        if most < 10:
            continue
        mb = draw(st.integers(10, most))
        for d in chosen:
            free[d] -= mb
        state = draw(STATES)
        placed.append(
            instance(
                draw(st.sampled_from("abcde")),
                name,
                chosen,
                mb,
                id=InstanceId(f"{name}-{at}"),
                state=state,
                pinned=draw(st.integers(0, 5)) == 0,
                in_flight=draw(st.sampled_from([0, 0, 0, 1]))
                if state is InstanceState.READY
                else 0,
                last_used=NOW - draw(st.integers(0, 1000)),
                started_at=NOW - draw(st.sampled_from([0.5, 5, 5000])),
                load_seconds=draw(st.sampled_from([0.1, 20.0])),
            )
        )
    cards = tuple(
        device(
            i,
            total,
            name=draw(st.sampled_from(["H200", "L40"])),
            kind=draw(st.sampled_from([DeviceKind.CUDA] * 3 + [DeviceKind.CPU])),
        )
        for i, total in enumerate(totals)
    )
    return node(
        name,
        cards,
        tuple(placed),
        state=draw(st.sampled_from([NodeState.UP] * 4 + [NodeState.UNREACHABLE])),
        cordoned=draw(st.integers(0, 5)) == 0,
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A fleet of up to 4 nodes."""
    drawn = [draw(nodes(f"n{i}")) for i in range(draw(st.integers(0, 4)))]
    standings = {
        ModelId(m): Standing(
            priority=draw(st.integers(0, 2)),
            reload_s=draw(st.sampled_from([1.0, 30.0])),
            rate=draw(st.sampled_from([0.0, 0.01, 1.0])),
            keep=draw(st.sampled_from([0, 0, 0, 1])),
        )
        for m in "abcde"
    }
    stored = {ModelId("f"): frozenset(draw(st.sets(st.sampled_from(["n0", "n1"]))))}
    promises: list[Promise] = []
    for n in drawn:
        if draw(st.integers(0, 3)) == 0:
            room = n.devices[0].vram_available_mb
            mb = draw(st.integers(0, room))
            promises.append(Promise(InstanceId(f"{n.name}-z"), ModelId("z"), n.name, (0,), mb))
    overlay = Overlay(promises=tuple(promises))
    return world(*drawn, overlay=overlay, standings=standings, stored=stored)


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    """A model that none of the drawn fleets has loaded."""
    least = draw(st.sampled_from([1, 1, 1, 2]))
    return profile(
        "f",
        draw(st.one_of(st.none(), st.integers(10, 1600))),
        min_devices=least,
        max_devices=draw(st.sampled_from([None, 4])),
        mixed_devices=draw(st.booleans()),
        device_kind=draw(st.sampled_from([None, None, "cuda", "cpu"])),
        min_device_vram_mb=draw(st.sampled_from([0, 0, 300])),
    )
