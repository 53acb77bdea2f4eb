"""Where evictions make room with the least loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cortex_server.core.evict import Choice, Victim, cheapest
from cortex_server.core.fit import Shape, suitable
from cortex_server.core.rooms import DeviceRoom, NodeRoom
from cortex_server.core.victims import Guard

MOST_NODES = 16
"""Nodes that are searched exactly, the most promising first. A fleet of so many is searched whole; in a larger one
the least loss is that of the nodes with the least bounds."""

FURTHER_DEVICES = 2
"""Where instances stand on several devices, sets are drawn from so many devices more than are needed, cheapest
first."""


@dataclass(frozen=True, slots=True)
class Place:
    """A set of devices, and who has to go from them."""

    room: NodeRoom
    devices: tuple[DeviceRoom, ...]
    shape: Shape
    choice: Choice


def cheapest_place(shape: Shape, rooms: Iterable[NodeRoom], guard: Guard) -> Place | None:
    """The least loss over the nodes; they are tried by a lower bound of it, so that few are searched."""
    able = [r for r in rooms if guard.reaches(r, shape)]
    bounds = sorted((guard.bound(r, shape), at) for at, r in enumerate(able))
    best: Place | None = None
    searched = 0
    for bound, at in bounds:
        if searched == MOST_NODES or (best is not None and bound > best.choice.worth):
            break
        searched += 1
        best = _cheaper_on(able[at], shape, guard, best) or best
        if best is None:
            searched = 0  # nodes that turn out to have nobody who may go do not count
    return best


def _cheaper_on(room: NodeRoom, shape: Shape, guard: Guard, best: Place | None) -> Place | None:
    """The least loss on one node, if it is less than the best so far."""
    victims = guard.candidates(room)
    on: dict[int, list[Victim]] = {}
    for victim in victims:
        for index in victim.frees:
            on.setdefault(index, []).append(victim)
    strategy, need = guard.policy.strategy, shape.size.device_mb
    found: Place | None = None
    for chosen in _sets(room, shape, on, guard):
        missing = {d.index: need - d.available_mb for d in chosen}
        there = on.get(chosen[0].index, []) if len(chosen) == 1 else victims
        if best is not None and there and there[0].worth > best.choice.worth:
            continue
        choice = cheapest(strategy, there, missing)
        if choice is not None and (best is None or choice.worth < best.choice.worth):
            best = found = Place(room, chosen, shape, choice)
    return found


def _sets(
    room: NodeRoom, shape: Shape, on: Mapping[int, Sequence[Victim]], guard: Guard
) -> Iterator[tuple[DeviceRoom, ...]]:
    """Sets of devices worth comparing: all single ones, or the best of each type.

    Where every victim stands on one device, the cheapest devices together are the cheapest set.
    """
    profile = guard.wish.profile
    devices = suitable(profile, room, shape, guard.wish.where)
    if shape.devices == 1:
        yield from ((d,) for d in devices)
        return
    groups: dict[str, list[tuple[Choice, DeviceRoom]]] = {}
    need = shape.size.device_mb
    for d in devices:
        missing = {d.index: need - d.available_mb}
        choice = cheapest(guard.policy.strategy, on.get(d.index, ()), missing)
        if choice is not None:
            groups.setdefault("" if profile.mixed_devices else d.name, []).append((choice, d))
    shared = any(len(v.frees) > 1 for there in on.values() for v in there)
    for group in groups.values():
        group.sort(key=lambda found: (found[0].worth, found[1].index))
        most = shape.devices + (FURTHER_DEVICES if shared else 0)
        cheap = sorted((d for _, d in group[:most]), key=lambda d: d.index)
        yield from combinations(cheap, shape.devices)
