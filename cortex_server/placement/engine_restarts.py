"""When an engine of somebody else is restarted: each load and unload scatters its memory, and nothing else mends that.

What is in it is drained first, stays where it is as far as placement is concerned, and is loaded again with the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cortex_common.schema.fleet import EngineView, InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceState
from cortex_server.placement.capacity import TAKING_MEMORY
from cortex_server.placement.eviction import UNKNOWN, StatsByModel

QUIET_S = 60.0
"""An engine in which nobody has used anything for so long is restarted without anybody's noticing."""

INSIST_AFTER = 2
"""An engine that is never quiet is drained after this many times the loads and unloads that make it due."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One engine that is due.

    Attributes:
        cycles: loads and unloads in it since it started.
        instances: what is in it, and comes back.
        seconds: that loading them again is expected to take; who asks for one meanwhile waits.
        idle_s: seconds since one of them was used; 0 while one is in use.
        hindrance: why it can't be restarted now, for people.
    """

    node: str
    harness: str
    cycles: int
    instances: tuple[InstanceView, ...]
    seconds: float
    idle_s: float
    hindrance: str | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are waited for first."""
        return sum(i.in_flight for i in self.instances)


def due_restarts(
    nodes: Iterable[NodeView], stats: StatsByModel, after_cycles: int, now: float
) -> tuple[Restart, ...]:
    """Engines with at least so many loads and unloads since they started, those with most first.

    Args:
        nodes: of the fleet.
        stats: for the seconds of a load.
        after_cycles: how many make one due; 0 for never.
        now: Unix seconds.
    """
    if not after_cycles:
        return ()
    found = [
        _restart(node, engine, stats, now)
        for node in nodes
        if node.state is NodeState.UP
        for engine in node.engines
        if engine.cycles >= after_cycles
    ]
    return tuple(sorted(found, key=lambda r: (-r.cycles, r.node, r.harness)))


def affordable(found: Iterable[Restart], seconds: float) -> tuple[Restart, ...]:
    """Those that can be made now, one after the other, while their loading stays within so many seconds."""
    chosen: list[Restart] = []
    for restart in found:
        if restart.hindrance is None and restart.seconds <= seconds:
            seconds -= restart.seconds
            chosen.append(restart)
    return tuple(chosen)


def choose(found: Iterable[Restart], after_cycles: int) -> Restart | None:
    """The one to make unasked: the first that is quiet, or has waited for quiet in vain for too long."""
    return next(
        (
            r
            for r in found
            if r.hindrance is None
            and (r.idle_s >= QUIET_S or r.cycles >= INSIST_AFTER * after_cycles)
        ),
        None,
    )


def _restart(node: NodeView, engine: EngineView, stats: StatsByModel, now: float) -> Restart:
    inside = tuple(
        i for i in node.instances if i.harness == engine.harness and i.state in TAKING_MEMORY
    )
    busy = any(i.in_flight for i in inside)
    return Restart(
        node=node.name,
        harness=engine.harness,
        cycles=engine.cycles,
        instances=inside,
        seconds=sum(stats.get(i.model, UNKNOWN).reload_s for i in inside),
        idle_s=0.0 if busy else now - max((i.last_used for i in inside), default=0.0),
        hindrance=_hindrance(engine, inside),
    )


def _hindrance(engine: EngineView, inside: Sequence[InstanceView]) -> str | None:
    unsettled = next((i for i in inside if i.state is not InstanceState.READY), None)
    if engine.restarting:
        return "it is being restarted"
    if not engine.restartable:
        return f"its neuron knows no unit to restart: set unit of harness {engine.harness!r} in neuron.toml"
    if not engine.reachable:
        return "it does not answer"
    return f"{unsettled.model} is {unsettled.state} in it" if unsettled is not None else None
