"""Which devices a plan chooses: by card, name, label and links, in a shared memory pool, and GPU before CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from placement_states import cluster, device, instance, model_config, node

from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import ModelId
from cortex_server.placement.fit import Size, SizeSource, size_key
from cortex_server.placement.overlay import Overlay, Reservation
from cortex_server.placement.planner import plan
from cortex_server.placement.plans import Impossible, Load
from cortex_server.placement.policy import Policy
from cortex_server.placement.state import ClusterState, PlacementRequest

LRU = Policy()


def load(request: PlacementRequest, fleet: ClusterState, policy: Policy = LRU) -> Load:
    """Return the planned load."""
    planned = plan(request, fleet, policy)
    assert isinstance(planned, Load), planned
    return planned


def cpu(index: int, total_mb: int = 1000, **more: object):
    """Return a cpu device."""
    return device(index, total_mb, kind=DeviceKind.CPU, name="EPYC", uuid="CPU-0", **more)


def test_sizes_are_those_of_the_card() -> None:
    """A model that takes most of a large card is not kept off a small one, where it takes less."""
    wanted = model_config("f", None)
    key = size_key(wanted, DeviceKind.CUDA, 1)
    sizes = {
        key: {"H200": Size(900, SizeSource.MEASURED), "L40": Size(300, SizeSource.MEASURED)},
    }
    cards = (device(0, 1000), device(1, 400, name="L40"))
    fleet = cluster(node("n1", cards, (instance("a", mb=200),)), sizes=sizes)
    planned = load(PlacementRequest(wanted), fleet)
    assert (planned.devices, planned.shape.size.device_mb) == ((1,), 300)


def test_a_measured_size_that_used_headroom_fits_an_empty_device_only() -> None:
    """An engine that was measured in the headroom of its card is not left out for good."""
    wanted = model_config("f", None)
    sizes = {size_key(wanted, DeviceKind.CUDA, 1): {"H200": Size(1030, SizeSource.MEASURED)}}
    card = device(0, 1100, vram_available_mb=1000, vram_headroom_mb=100)
    assert load(PlacementRequest(wanted), cluster(node("n1", (card,)), sizes=sizes)).devices == (0,)
    busy = node("n1", (card,), (instance("a", mb=50, pinned=True),))
    assert isinstance(plan(PlacementRequest(wanted), cluster(busy, sizes=sizes), LRU), Impossible)


def test_memory_shared_by_a_gpu_and_the_cpu_is_reserved_once() -> None:
    """A decided load on the unified GPU leaves less on the cpu device, and unloading it there frees both."""
    gpu = device(0, 1000, unified=True)
    shared = node("n1", (gpu, cpu(1, 1000, unified=True)))
    promised = Overlay(reservations=(Reservation("r", ModelId("r"), "n1", (0,), 700),))  # type: ignore[arg-type]
    (capacity,) = cluster(shared, overlay=promised).capacities
    assert [d.available_mb for d in capacity.devices] == [300, 300]
    holder = replace(instance("a", mb=700), devices=(0,))
    full = replace(
        shared,
        devices=tuple(replace(d, vram_available_mb=300) for d in shared.devices),
        instances=(holder,),
    )
    (capacity,) = cluster(full).capacities
    assert capacity.available_without_idle[DeviceKind.CPU] == (1000,)
    on_cpu = model_config("f", 900, device_kind="cpu")
    assert load(PlacementRequest(on_cpu), cluster(full)).evictions == (holder.id,)


@pytest.mark.parametrize("name", ["n2/1", "GPU-b", "n2/GPU-b"])
def test_a_model_config_can_name_its_gpu(name: str) -> None:
    """By node and index, by node and UUID, or by UUID alone."""
    nodes = (
        node("n1", (device(0), device(1))),
        node("n2", (device(0), device(1, uuid="GPU-b"))),
    )
    planned = load(PlacementRequest(model_config("f", gpus=(name,))), cluster(*nodes))
    assert (planned.node, planned.devices) == ("n2", (1,))


def test_labels_and_cordons_of_gpus_are_respected() -> None:
    """A GPU without the label, and one that neuron.toml cordons, are named with the reason."""
    cards = (
        device(0, labels={"pool": "slow"}),
        device(1, labels={"pool": "fast"}, cordoned=True),
        device(2, labels={"pool": "fast"}),
    )
    wanted = model_config("f", gpu_labels={"pool": "fast"})
    assert load(PlacementRequest(wanted), cluster(node("n1", cards))).devices == (2,)
    planned = plan(PlacementRequest(wanted), cluster(node("n1", cards[:2])), LRU)
    assert isinstance(planned, Impossible)
    assert [r.reason for r in planned.refusals] == [
        "the device has no label pool=fast",
        "the device is cordoned in neuron.toml",
    ]


def test_a_split_model_takes_the_best_connected_gpus() -> None:
    """NVLink decides among GPUs with enough memory, and the plan says so."""
    links = {
        0: {"GPU-1": "system", "GPU-2": "nvlink", "GPU-3": "system"},
        1: {"GPU-0": "system", "GPU-2": "system", "GPU-3": "numa"},
        2: {"GPU-0": "nvlink", "GPU-1": "system", "GPU-3": "system"},
        3: {"GPU-0": "system", "GPU-1": "numa", "GPU-2": "system"},
    }
    cards = tuple(device(i, links=links[i]) for i in range(4))
    planned = load(PlacementRequest(model_config("f", min_devices=2)), cluster(node("n1", cards)))
    assert planned.devices == (0, 2)
    assert "connected by NVLink" in planned.reason


def test_mig_devices_are_not_combined() -> None:
    """A process can use one MIG device only."""
    cards = tuple(device(i, uuid=f"MIG-{i}") for i in range(2))
    split = PlacementRequest(model_config("f", min_devices=2))
    assert isinstance(plan(split, cluster(node("n1", cards)), LRU), Impossible)
    assert load(PlacementRequest(model_config("f")), cluster(node("n1", cards))).devices == (0,)


def test_an_idle_model_makes_room_on_the_gpu_before_the_cpu_is_used() -> None:
    """With `prefer_gpu` off, or while the GPU's model is busy, free memory of the CPU is used."""
    fleet = cluster(node("n1", (device(0, 500), cpu(1)), (instance("a", mb=450),)))
    request = PlacementRequest(model_config("f", 400))
    assert load(request, fleet).devices == (0,)
    assert load(request, fleet, Policy(prefer_gpu=False)).devices == (1,)
    busy = cluster(node("n1", (device(0, 500), cpu(1)), (instance("a", mb=450, in_flight=1),)))
    assert load(request, busy).devices == (1,)
