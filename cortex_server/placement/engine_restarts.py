"""When to restart an attached engine: each load and unload fragments its memory, and only a restart undoes that.

Its instances are drained first, keep their place as far as placement is concerned, and are loaded again with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cortex_common.schema.fleet import EngineView, InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceState
from cortex_server.placement.capacity import MEMORY_HOLDING_STATES
from cortex_server.placement.eviction import DEFAULT_STATS, StatsByModel

IDLE_THRESHOLD_S = 60.0
"""An engine without requests for this long can be restarted without any client noticing."""

FORCE_AFTER_MULTIPLE = 2
"""An engine that is never idle is drained at this multiple of the cycles that make a restart due."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart that is due.

    Attributes:
        node: the node.
        harness: the harness that the engine is attached to.
        cycles: loads and unloads since the engine started.
        instances: the instances in it, which come back.
        seconds: expected seconds to load them again; requests for them wait that long.
        idle_s: seconds since one of them was used; 0 while one is busy.
        blocker: why it can't be restarted now, as text for people.
    """

    node: str
    harness: str
    cycles: int
    instances: tuple[InstanceView, ...]
    seconds: float
    idle_s: float
    blocker: str | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are drained first."""
        return sum(i.in_flight for i in self.instances)


def due_restarts(
    nodes: Iterable[NodeView], stats: StatsByModel, after_cycles: int, now: float
) -> tuple[Restart, ...]:
    """Return the engines with at least `after_cycles` loads and unloads since they started, most cycles first.

    Args:
        nodes: the nodes.
        stats: model statistics, for load times.
        after_cycles: cycles that make a restart due; 0 for never.
        now: Unix seconds.
    """
    if not after_cycles:
        return ()
    restarts = [
        _restart(node, engine, stats, now)
        for node in nodes
        if node.state is NodeState.UP
        for engine in node.engines
        if engine.cycles >= after_cycles
    ]
    return tuple(sorted(restarts, key=lambda r: (-r.cycles, r.node, r.harness)))


def within_time_budget(restarts: Iterable[Restart], seconds: float) -> tuple[Restart, ...]:
    """Return the restarts that can be made now, one after another, within a total of `seconds` of loading."""
    chosen: list[Restart] = []
    for restart in restarts:
        if restart.blocker is None and restart.seconds <= seconds:
            seconds -= restart.seconds
            chosen.append(restart)
    return tuple(chosen)


def choose_restart(restarts: Iterable[Restart], after_cycles: int) -> Restart | None:
    """Return the restart to make automatically: the first whose engine is idle, or has been busy for too long."""
    return next(
        (
            r
            for r in restarts
            if r.blocker is None
            and (r.idle_s >= IDLE_THRESHOLD_S or r.cycles >= FORCE_AFTER_MULTIPLE * after_cycles)
        ),
        None,
    )


def _restart(node: NodeView, engine: EngineView, stats: StatsByModel, now: float) -> Restart:
    instances = tuple(
        i
        for i in node.instances
        if i.harness == engine.harness and i.state in MEMORY_HOLDING_STATES
    )
    busy = any(i.in_flight for i in instances)
    return Restart(
        node=node.name,
        harness=engine.harness,
        cycles=engine.cycles,
        instances=instances,
        seconds=sum(stats.get(i.model, DEFAULT_STATS).reload_s for i in instances),
        idle_s=0.0 if busy else now - max((i.last_used for i in instances), default=0.0),
        blocker=_blocker(engine, instances),
    )


def _blocker(engine: EngineView, instances: Sequence[InstanceView]) -> str | None:
    not_ready = next((i for i in instances if i.state is not InstanceState.READY), None)
    if engine.restarting:
        return "it is being restarted"
    if not engine.restartable:
        return f"its neuron has no systemd unit to restart: set `unit` of harness {engine.harness!r} in neuron.toml"
    if not engine.reachable:
        return "it is unreachable"
    return f"{not_ready.model} is {not_ready.state} in it" if not_ready is not None else None
