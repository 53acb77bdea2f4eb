"""The ledger over random histories of engines that load, grow, crash, restart and fail, and of other processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cortex_common.errors import DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId
from neuron_server.memory.ledger import DeviceMemory, Grant, MemoryRequest, admit, compute_accounts

TOTAL_MB = 1000
HEADROOM_MB = 50


@dataclass
class Engine:
    """An engine as its device sees it.

    Attributes:
        device: index of its device.
        granted: MiB that the ledger granted it.
        used: MiB that it has allocated.
        grows: it can allocate more after it is ready.
        state: "loading", "ready" or "crashed".
        held: MiB that stay reserved until its restart.
    """

    device: int
    granted: int
    used: int = 0
    grows: bool = False
    state: str = "loading"
    held: int | None = None


@dataclass
class Node:
    """Two devices, with other processes and engines that keep within their grants."""

    others: list[int] = field(default_factory=lambda: [0, 0])
    engines: dict[str, Engine] = field(default_factory=dict)

    def memory(self) -> list[DeviceMemory]:
        """Return the measured devices."""
        used = [
            self.others[d] + sum(e.used for e in self.engines.values() if e.device == d)
            for d in range(2)
        ]
        return [
            DeviceMemory(d, DeviceKind.CUDA, used[d], TOTAL_MB - used[d], HEADROOM_MB)
            for d in range(2)
        ]

    def grants(self, without: str | None = None) -> list[Grant]:
        """Return the grants as the neuron derives them: see `MemoryAccounting.grants`."""
        return [
            Grant(
                InstanceId(name),
                e.device,
                e.granted if e.held is None else e.held,
                e.used,
                unused_released=e.state == "ready" and not e.grows,
            )
            for name, e in self.engines.items()
            if name != without
        ]


class Histories(RuleBasedStateMachine):
    """Whatever happens, what is promised fits into what is free, unless other processes took it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.count = 0
        self.taken_by_others = False

    def _named(self, data: st.DataObject, *states: str) -> Engine:
        names = sorted(n for n, e in self.node.engines.items() if e.state in states)
        return self.node.engines[data.draw(st.sampled_from(names))]

    def _has(self, *states: str) -> bool:
        return any(e.state in states for e in self.node.engines.values())

    @rule(
        size=st.none() | st.integers(1, TOTAL_MB),
        grows=st.booleans(),
        learned=st.booleans(),
        device=st.sampled_from([(), (0,), (1,)]),
    )
    def load(self, size: int | None, grows: bool, learned: bool, device: tuple[int, ...]) -> None:
        request = MemoryRequest(size, 1, device, (DeviceKind.CUDA,), learned=learned)
        memory, grants = self.node.memory(), self.node.grants()
        try:
            reservation = admit(request, memory, grants)
        except DoesNotFit as refusal:
            self._check_refusal(request, refusal)
            return
        self.count += 1
        (chosen,) = reservation.devices
        engine = Engine(chosen, reservation.per_device_mb, grows=grows)
        self.node.engines[f"e{self.count}"] = engine

    def _check_refusal(self, request: MemoryRequest, refusal: DoesNotFit) -> None:
        """A load is refused only if it does not fit now, and with a size that an empty device offers or exceeds."""
        accounts = compute_accounts(self.node.memory(), self.node.grants())
        candidates = [
            a for a in accounts if not request.devices or a.memory.index in request.devices
        ]
        needed = refusal.details["needed_mb"]
        assert all(a.available_mb < needed for a in candidates)
        if request.per_device_mb is None:
            assert needed <= max(a.empty_mb for a in candidates) or not any(
                a.empty_mb for a in candidates
            )

    @precondition(lambda self: self._has("loading"))
    @rule(data=st.data(), share=st.floats(0, 1))
    def allocate(self, data: st.DataObject, share: float) -> None:
        engine = self._named(data, "loading")
        engine.used = max(engine.used, int(engine.granted * share))

    @precondition(lambda self: self._has("loading"))
    @rule(data=st.data())
    def become_ready(self, data: st.DataObject) -> None:
        self._named(data, "loading").state = "ready"

    @precondition(lambda self: self._has("ready"))
    @rule(data=st.data(), share=st.floats(0, 1))
    def grow(self, data: st.DataObject, share: float) -> None:
        engine = self._named(data, "ready")
        if engine.grows:
            engine.used = max(engine.used, int(engine.granted * share))

    @precondition(lambda self: self._has("ready"))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        engine = self._named(data, "ready")
        engine.held = max(engine.used, engine.granted if engine.grows else 0)
        engine.used, engine.state = 0, "crashed"

    @precondition(lambda self: self._has("crashed"))
    @rule(data=st.data(), more=st.integers(0, 300))
    def restart(self, data: st.DataObject, more: int) -> None:
        engine = self._named(data, "crashed")
        name = next(n for n, e in self.node.engines.items() if e is engine)
        size = (
            engine.held or 0
        ) + more  # an engine that ran out of memory asks for more than it held
        request = MemoryRequest(size, 1, (engine.device,), (DeviceKind.CUDA,), learned=True)
        try:
            reservation = admit(request, self.node.memory(), self.node.grants(without=name))
        except DoesNotFit:
            del self.node.engines[name]
            return
        engine.granted, engine.held, engine.state = reservation.per_device_mb, None, "loading"

    @precondition(lambda self: self.node.engines)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        del self.node.engines[data.draw(st.sampled_from(sorted(self.node.engines)))]

    @rule(device=st.integers(0, 1), mb=st.integers(0, 300))
    def others_change(self, device: int, mb: int) -> None:
        (memory,) = (m for m in self.node.memory() if m.index == device)
        free = memory.free_mb + self.node.others[device]
        self.taken_by_others |= mb > self.node.others[device]
        self.node.others[device] = min(mb, free)

    @invariant()
    def nothing_is_overcommitted(self) -> None:
        if self.taken_by_others:
            return
        for memory in self.node.memory():
            own = [g for g in self.node.grants() if g.device == memory.index]
            assert sum(g.reserved_mb for g in own) <= memory.free_mb

    @invariant()
    def an_empty_device_takes_what_it_took_before(self) -> None:
        for device in range(2):
            if self.node.others[device] or any(
                e.device == device for e in self.node.engines.values()
            ):
                continue
            request = MemoryRequest(TOTAL_MB, 1, (device,), (DeviceKind.CUDA,), learned=True)
            granted = admit(request, self.node.memory(), self.node.grants()).per_device_mb
            assert granted == TOTAL_MB - HEADROOM_MB


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
