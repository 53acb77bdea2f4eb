"""The ledger: what may be promised, and what its numbers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId
from neuron_server.ledger import DeviceMemory, Grant, MemoryRequest, admit, compute_accounts

CUDA, CPU = DeviceKind.CUDA, DeviceKind.CPU


def gpu(
    index: int = 0, free: int = 1000, total: int = 1000, headroom: int = 0, **more
) -> DeviceMemory:
    """A device."""
    return DeviceMemory(index, more.pop("kind", CUDA), total - free, free, headroom, **more)


def need(size: int | None, count: int = 1, devices=(), kinds=(CUDA, CPU)) -> MemoryRequest:
    """What a load asks for."""
    return MemoryRequest(size, count, tuple(devices), kinds)


def grant(
    promised: int, measured: int | None = None, *, device: int = 0, unused_released=False
) -> Grant:
    """What an instance holds."""
    return Grant(InstanceId("i"), device, promised, measured, unused_released)


sizes = st.integers(0, 2000)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[DeviceMemory], list[Grant]]:
    """Devices with measured shares, as a node sees them: what is measured is not free."""
    memory, grants = [], []
    for index in range(draw(st.integers(1, 4))):
        total = draw(st.integers(1, 4000))
        mine = [
            grant(
                draw(sizes),
                draw(st.none() | sizes),
                device=index,
                unused_released=draw(st.booleans()),
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        used = sum(s.measured_mb or 0 for s in mine) + draw(sizes)
        free = max(0, total - used)
        memory.append(
            gpu(index, free, total, draw(st.integers(0, 500)), usable=draw(st.booleans()))
        )
        grants += mine
    return memory, grants


@given(worlds(), st.lists(st.tuples(sizes, st.integers(1, 3)), max_size=12))
def test_promises_never_exceed_what_is_free(world, asked):
    """However many loads ask one after another, the promises of a device fit into what is free beyond its headroom."""
    memory, grants = world
    before = {a.memory.index: a for a in compute_accounts(memory, grants)}
    for size, count in asked:
        try:
            reservation = admit(need(size, count), memory, grants)
        except DoesNotFit:
            continue
        assert len(set(reservation.devices)) == count
        grants = [*grants, *(grant(size, device=index) for index in reservation.devices)]
    for account in compute_accounts(memory, grants):
        promised = account.reserved_mb - before[account.memory.index].reserved_mb
        assert promised <= before[account.memory.index].available_mb
        if promised:
            assert account.memory.usable
            assert account.reserved_mb + account.memory.headroom_mb <= account.memory.free_mb


@given(worlds(), sizes, st.integers(1, 3))
def test_a_refusal_is_right_and_its_numbers_add_up(world, size, count):
    """A load is refused only when fewer devices than it needs have the room, and the details say so."""
    memory, grants = world
    try:
        admit(need(size, count), memory, grants)
    except DoesNotFit as refused:
        details = refused.details
    else:
        return
    assert details["needed_mb"] == size
    rows = details["devices"]
    assert [row["index"] for row in rows] == [b.index for b in memory]
    for row, device in zip(rows, memory, strict=True):
        room = row["free_mb"] - row["headroom_mb"] - row["reserved_mb"]
        assert row["available_mb"] == (max(0, room) if device.usable else 0)
    usable = {b.index for b in memory if b.usable}
    fitting = [r for r in rows if r["available_mb"] >= size and r["index"] in usable]
    assert len(fitting) < count


@given(worlds(), sizes)
def test_the_fullest_device_that_fits_is_taken(world, size):
    """Large free blocks stay whole: no other device that fits has less to spare."""
    memory, grants = world
    try:
        (taken,) = admit(need(size), memory, grants).devices
    except DoesNotFit:
        return
    available = {
        a.memory.index: a.available_mb for a in compute_accounts(memory, grants) if a.memory.usable
    }
    assert available[taken] == min(mb for mb in available.values() if mb >= size)


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
def test_the_hosts_memory_is_promised_once(host_free, budget, headrooms, asked):
    """On a host whose GPU shares its RAM with the cpu device, all that was promised can be taken at once."""
    free, grants = host_free, []
    for kinds, size, count, takes in asked:
        on_cpu = sum(s.measured_mb or 0 for s in grants if s.device == 1)
        cpu_free = max(0, min(budget - on_cpu, free))
        memory = [
            gpu(0, free, 8000, headrooms[0], pool_free_mb=free),
            gpu(1, cpu_free, budget, headrooms[1], kind=CPU, pool_free_mb=free),
        ]
        try:
            reservation = admit(need(size, count, kinds=kinds), memory, grants)
        except DoesNotFit:
            continue
        (device,) = reservation.devices
        taken = reservation.per_device_mb if takes else None
        free -= taken or 0
        grants.append(grant(reservation.per_device_mb, taken, device=device))
    promised = sum(s.granted_mb for s in grants)
    assert promised <= host_free
    if promised:
        assert promised + max(headrooms) <= host_free
    assert sum(s.granted_mb for s in grants if s.device == 1) <= budget


def test_a_load_on_one_device_of_the_pool_leaves_less_on_the_other():
    """What is promised on the unified GPU is missing from what the cpu device offers, and the other way round."""
    memory = [
        gpu(0, 1000, 1000, 100, pool_free_mb=1000),
        gpu(1, 600, 600, 50, kind=CPU, pool_free_mb=1000),
        gpu(2, 1000),
    ]
    loads = [grant(300, device=0), grant(200, device=1)]
    assert [a.available_mb for a in compute_accounts(memory, loads)] == [400, 350, 1000]
    with pytest.raises(DoesNotFit):
        admit(need(500, kinds=(CUDA,), devices=(0,)), memory, loads)
    with pytest.raises(DoesNotFit, match="each of 2 devices"):
        admit(need(1, 2, kinds=(CUDA,)), [memory[0], gpu(3, pool_free_mb=1000)], [])


def test_a_promise_counts_only_as_far_as_it_is_not_taken():
    """While an engine grows into its promise, what it took is measured and the rest is reserved."""
    (account,) = compute_accounts([gpu(free=700)], [grant(500, 300)])
    assert (account.reserved_mb, account.other_mb, account.available_mb) == (200, 0, 500)


def test_an_engine_that_took_more_than_promised_is_no_foreigner():
    """Measured beyond the promise counts as ours and reserves nothing."""
    (account,) = compute_accounts([gpu(free=300)], [grant(500, 700)])
    assert (account.reserved_mb, account.other_mb, account.available_mb) == (0, 0, 300)


def test_a_settled_instance_keeps_nothing_it_did_not_take():
    """Once loaded and measured, an overestimate is available to others."""
    (account,) = compute_accounts([gpu(free=700)], [grant(500, 300, unused_released=True)])
    assert account.available_mb == 700


def test_memory_that_nobody_can_attribute_is_not_counted_twice():
    """Where the driver can't tell whose memory it is, a loaded engine's is just missing from what is free."""
    loaded = grant(300, None, unused_released=True)
    (account,) = compute_accounts([gpu(free=700)], [loaded])
    assert account.available_mb == 700
    assert loaded.footprint_mb == 300


def test_what_an_end_gives_back_is_what_was_taken_and_kept():
    """An instance counts with its measured memory and the open rest of its promise."""
    assert grant(500, 300).footprint_mb == 500
    assert grant(500, 700).footprint_mb == 700
    assert grant(500, 300, unused_released=True).footprint_mb == 300
    assert grant(500).footprint_mb == 500


def test_strangers_are_seen_and_their_memory_is_not_promised():
    """What others use is foreign and lowers what is available."""
    (account,) = compute_accounts([gpu(free=400, headroom=100)], [grant(200, 200)])
    assert (account.other_mb, account.available_mb) == (400, 300)


def test_a_lost_device_gets_nothing():
    """A device that does not answer is no candidate, whatever its last numbers were."""
    with pytest.raises(DoesNotFit):
        admit(need(1), [gpu(usable=False)], [])


def test_named_devices_are_used_and_nothing_else():
    """The caller's choice is kept even where another device would be the better fit."""
    memory = [gpu(0, free=1000), gpu(1, free=400)]
    assert admit(need(100, devices=(0,)), memory, []).devices == (0,)
    with pytest.raises(DoesNotFit):
        admit(need(500, devices=(1,)), memory, [])
    with pytest.raises(BadRequest, match="no device 7"):
        admit(need(1, devices=(7,)), memory, [])
    with pytest.raises(BadRequest, match="does not support device 0"):
        admit(need(1, devices=(0,), kinds=(CPU,)), memory, [])


def test_the_preferred_kind_of_device_wins():
    """An engine that runs on both goes to the GPU while it has room, then to the CPU."""
    memory = [gpu(0, free=500), gpu(1, free=9000, kind=CPU)]
    assert admit(need(400), memory, []).devices == (0,)
    assert admit(need(600), memory, []).devices == (1,)


def test_an_unknown_size_takes_all_of_the_emptiest_device():
    """When nobody knows what a load needs, nothing else is promised beside it."""
    memory = [gpu(0, free=500), gpu(1, free=800, headroom=50)]
    reservation = admit(need(None), memory, [])
    assert (reservation.devices, reservation.per_device_mb) == ((1,), 750)
    with pytest.raises(DoesNotFit, match="unknown size"):
        admit(need(None), [gpu(free=0)], [])


def test_a_node_without_a_suitable_device_says_how_to_get_one():
    """An engine for CPUs on a node that offers none is refused with the setting to change."""
    with pytest.raises(DoesNotFit, match="no device of kind cpu") as refused:
        admit(need(1, kinds=(CPU,)), [gpu()], [])
    assert "offer = true" in refused.value.hints[0]
