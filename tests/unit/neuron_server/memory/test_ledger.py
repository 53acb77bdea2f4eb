"""The memory ledger: admission and the numbers that it reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId
from neuron_server.memory.ledger import DeviceMemory, Grant, MemoryRequest, admit, compute_accounts

CUDA, CPU = DeviceKind.CUDA, DeviceKind.CPU


def gpu(
    index: int = 0, free: int = 1000, total: int = 1000, headroom: int = 0, **more
) -> DeviceMemory:
    """Return a measured device."""
    return DeviceMemory(index, more.pop("kind", CUDA), total - free, free, headroom, **more)


def request(size: int | None, count: int = 1, devices=(), kinds=(CUDA, CPU)) -> MemoryRequest:
    """Return a load's memory request."""
    return MemoryRequest(size, count, tuple(devices), kinds)


def grant(
    size: int, measured: int | None = None, *, device: int = 0, unused_released=False
) -> Grant:
    """Return a grant of an instance."""
    return Grant(InstanceId("i"), device, size, measured, unused_released)


sizes = st.integers(0, 2000)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[list[DeviceMemory], list[Grant]]:
    """Draw devices and grants as a node sees them: measured memory is not free."""
    memory, grants = [], []
    for index in range(draw(st.integers(1, 4))):
        total = draw(st.integers(1, 4000))
        own = [
            grant(
                draw(sizes),
                draw(st.none() | sizes),
                device=index,
                unused_released=draw(st.booleans()),
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        used = sum(g.measured_mb or 0 for g in own) + draw(sizes)
        free = max(0, total - used)
        memory.append(
            gpu(index, free, total, draw(st.integers(0, 500)), usable=draw(st.booleans()))
        )
        grants += own
    return memory, grants


@given(nodes(), st.lists(st.tuples(sizes, st.integers(1, 3)), max_size=12))
def test_grants_never_exceed_free_memory(node, requests):
    """However many loads are admitted, a device's reservations fit into its free memory without the headroom."""
    memory, grants = node
    before = {a.memory.index: a for a in compute_accounts(memory, grants)}
    for size, count in requests:
        try:
            reservation = admit(request(size, count), memory, grants)
        except DoesNotFit:
            continue
        assert len(set(reservation.devices)) == count
        grants = [*grants, *(grant(size, device=index) for index in reservation.devices)]
    for account in compute_accounts(memory, grants):
        added = account.reserved_mb - before[account.memory.index].reserved_mb
        assert added <= before[account.memory.index].available_mb
        if added:
            assert account.memory.usable
            assert account.reserved_mb + account.memory.headroom_mb <= account.memory.free_mb


@given(nodes(), sizes, st.integers(1, 3))
def test_a_refusal_is_correct_and_its_numbers_add_up(node, size, count):
    """A load is refused only if too few devices have enough memory, and the details show that."""
    memory, grants = node
    try:
        admit(request(size, count), memory, grants)
    except DoesNotFit as error:
        details = error.details
    else:
        return
    assert details["needed_mb"] == size
    rows = details["devices"]
    assert [row["index"] for row in rows] == [b.index for b in memory]
    for row, device in zip(rows, memory, strict=True):
        unreserved = row["free_mb"] - row["headroom_mb"] - row["reserved_mb"]
        assert row["available_mb"] == (max(0, unreserved) if device.usable else 0)
    usable = {b.index for b in memory if b.usable}
    fitting = [r for r in rows if r["available_mb"] >= size and r["index"] in usable]
    assert len(fitting) < count


@given(nodes(), sizes)
def test_the_fullest_device_that_fits_is_chosen(node, size):
    """Large free blocks stay whole: no other device that fits has less available memory."""
    memory, grants = node
    try:
        (chosen,) = admit(request(size), memory, grants).devices
    except DoesNotFit:
        return
    available = {
        a.memory.index: a.available_mb for a in compute_accounts(memory, grants) if a.memory.usable
    }
    assert available[chosen] == min(mb for mb in available.values() if mb >= size)


@given(
    st.integers(0, 4000),
    st.integers(1, 4000),
    st.tuples(st.integers(0, 600), st.integers(0, 600)),
    st.lists(
        st.tuples(
            st.sampled_from([(CUDA,), (CPU,), (CUDA, CPU), (CPU, CUDA)]),
            st.none() | sizes,
            st.integers(1, 2),
            st.booleans(),
        ),
        max_size=15,
    ),
)
def test_the_hosts_memory_is_granted_once(host_free, budget, headrooms, requests):
    """If a GPU shares the host's RAM with the cpu device, all grants together fit into that RAM."""
    free, grants = host_free, []
    for kinds, size, count, allocates in requests:
        on_cpu = sum(g.measured_mb or 0 for g in grants if g.device == 1)
        cpu_free = max(0, min(budget - on_cpu, free))
        memory = [
            gpu(0, free, 8000, headrooms[0], pool_free_mb=free),
            gpu(1, cpu_free, budget, headrooms[1], kind=CPU, pool_free_mb=free),
        ]
        try:
            reservation = admit(request(size, count, kinds=kinds), memory, grants)
        except DoesNotFit:
            continue
        (device,) = reservation.devices
        allocated = reservation.per_device_mb if allocates else None
        free -= allocated or 0
        grants.append(grant(reservation.per_device_mb, allocated, device=device))
    granted = sum(g.granted_mb for g in grants)
    assert granted <= host_free
    if granted:
        assert granted + max(headrooms) <= host_free
    assert sum(g.granted_mb for g in grants if g.device == 1) <= budget


def test_a_load_on_one_device_of_the_pool_leaves_less_on_the_other():
    """A grant on the unified GPU reduces what is available on the cpu device, and vice versa."""
    memory = [
        gpu(0, 1000, 1000, 100, pool_free_mb=1000),
        gpu(1, 600, 600, 50, kind=CPU, pool_free_mb=1000),
        gpu(2, 1000),
    ]
    loads = [grant(300, device=0), grant(200, device=1)]
    assert [a.available_mb for a in compute_accounts(memory, loads)] == [400, 350, 1000]
    with pytest.raises(DoesNotFit):
        admit(request(500, kinds=(CUDA,), devices=(0,)), memory, loads)
    with pytest.raises(DoesNotFit, match="each of 2 devices"):
        admit(request(1, 2, kinds=(CUDA,)), [memory[0], gpu(3, pool_free_mb=1000)], [])


def test_only_the_unallocated_part_of_a_grant_is_reserved():
    """While an engine allocates its grant, the allocated part is measured and the rest is reserved."""
    (account,) = compute_accounts([gpu(free=700)], [grant(500, 300)])
    assert (account.reserved_mb, account.other_mb, account.available_mb) == (200, 0, 500)


def test_memory_beyond_a_grant_is_not_other_memory():
    """Memory measured beyond the grant is attributed to the instance, and nothing is reserved."""
    (account,) = compute_accounts([gpu(free=300)], [grant(500, 700)])
    assert (account.reserved_mb, account.other_mb, account.available_mb) == (0, 0, 300)


def test_a_loaded_instance_releases_what_it_did_not_allocate():
    """Once an instance is loaded, the unused part of its grant is available to other loads."""
    (account,) = compute_accounts([gpu(free=700)], [grant(500, 300, unused_released=True)])
    assert account.available_mb == 700


def test_memory_that_cannot_be_attributed_is_not_counted_twice():
    """If the driver can't attribute memory to processes, a loaded engine's memory is just not free."""
    loaded = grant(300, None, unused_released=True)
    (account,) = compute_accounts([gpu(free=700)], [loaded])
    assert account.available_mb == 700
    assert loaded.footprint_mb == 300


def test_a_footprint_is_allocated_and_reserved_memory():
    """The footprint is the measured memory plus the reserved rest of the grant."""
    assert grant(500, 300).footprint_mb == 500
    assert grant(500, 700).footprint_mb == 700
    assert grant(500, 300, unused_released=True).footprint_mb == 300
    assert grant(500).footprint_mb == 500


def test_memory_of_other_processes_is_not_granted():
    """Memory of other processes is reported as other, and reduces what is available."""
    (account,) = compute_accounts([gpu(free=400, headroom=100)], [grant(200, 200)])
    assert (account.other_mb, account.available_mb) == (400, 300)


def test_a_lost_device_gets_nothing():
    """A device that does not respond is not a candidate, regardless of its last numbers."""
    with pytest.raises(DoesNotFit):
        admit(request(1), [gpu(usable=False)], [])


def test_only_the_requested_devices_are_used():
    """The caller's choice is respected even if another device would fit better."""
    memory = [gpu(0, free=1000), gpu(1, free=400)]
    assert admit(request(100, devices=(0,)), memory, []).devices == (0,)
    with pytest.raises(DoesNotFit):
        admit(request(500, devices=(1,)), memory, [])
    with pytest.raises(BadRequest, match="no device 7"):
        admit(request(1, devices=(7,)), memory, [])
    with pytest.raises(BadRequest, match="does not support device 0"):
        admit(request(1, devices=(0,), kinds=(CPU,)), memory, [])


def test_the_preferred_kind_of_device_wins():
    """An engine that supports both is placed on the GPU while it has memory, then on the CPU."""
    memory = [gpu(0, free=500), gpu(1, free=9000, kind=CPU)]
    assert admit(request(400), memory, []).devices == (0,)
    assert admit(request(600), memory, []).devices == (1,)


def test_an_unknown_size_takes_all_of_the_emptiest_device():
    """A load of unknown size is granted all available memory of a device."""
    memory = [gpu(0, free=500), gpu(1, free=800, headroom=50)]
    reservation = admit(request(None), memory, [])
    assert (reservation.devices, reservation.per_device_mb) == ((1,), 750)
    with pytest.raises(DoesNotFit, match="unknown size"):
        admit(request(None), [gpu(free=0)], [])


def test_a_node_without_a_suitable_device_hints_at_the_setting():
    """The refusal of a CPU-only engine on a node without a cpu device names the setting to change."""
    with pytest.raises(DoesNotFit, match="no device of kind cpu") as refused:
        admit(request(1, kinds=(CPU,)), [gpu()], [])
    assert "offer = true" in refused.value.hints[0]
