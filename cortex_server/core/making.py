"""Where evictions make room with the least loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cortex_server.placement.capacity import DeviceRoom, NodeRoom
from cortex_server.placement.eviction import Choice, Victim, cheapest, together
from cortex_server.placement.eviction_candidates import Guard
from cortex_server.placement.fit import Shape, suitable
from cortex_server.placement.policy import Strategy

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
    best: Place | None = None
    searched = 0
    for bound, room in guard.by_bound(guard.within_reach(rooms, shape), shape):
        if searched == MOST_NODES or (best is not None and bound > best.choice.worth):
            break
        searched += 1
        best = _cheaper_on(room, shape, guard, best) or best
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
    summed = shape.devices > 1 and strategy is Strategy.COST
    if best is not None and summed and _least_sum(room, shape, on) > best.choice.worth[0]:
        return None
    found: Place | None = None
    for chosen, known in _sets(room, shape, on, guard):
        there = on.get(chosen[0].index, []) if len(chosen) == 1 else victims
        if best is not None and there and there[0].worth > best.choice.worth:
            continue
        missing = {d.index: need - d.available_mb for d in chosen}
        choice = known or cheapest(strategy, there, missing)
        if choice is not None and (best is None or choice.worth < best.choice.worth):
            best = found = Place(room, chosen, shape, choice)
    return found


def _least_sum(room: NodeRoom, shape: Shape, on: Mapping[int, Sequence[Victim]]) -> float:
    """No victims on this node are worth less in sum: every device that lacks room needs one, or a share of one."""
    floors: list[float] = []
    for device in room.devices:
        if device.kind is not shape.kind:
            continue
        if device.available_mb >= shape.size.device_mb:
            floors.append(0.0)
        elif there := on.get(device.index):
            floors.append(min(v.worth[0] / len(v.frees) for v in there))
    return sum(sorted(floors)[: shape.devices])


def _sets(
    room: NodeRoom, shape: Shape, on: Mapping[int, Sequence[Victim]], guard: Guard
) -> Iterator[tuple[tuple[DeviceRoom, ...], Choice | None]]:
    """Sets of devices worth comparing, with what is lost where that is known: all single ones, or the best by type.

    Where every victim stands on one device, the cheapest devices together are the cheapest set.
    """
    profile = guard.wish.profile
    devices = suitable(profile, room, shape, guard.wish.where)
    if shape.devices == 1:
        yield from (((d,), None) for d in devices)
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
        if shared:
            cheap = [d for _, d in group[: shape.devices + FURTHER_DEVICES]]
            yield from ((s, None) for s in combinations(_ordered(cheap), shape.devices))
        elif len(group) >= shape.devices:
            best = group[: shape.devices]
            choice = together(guard.policy.strategy, (c for c, _ in best))
            yield _ordered(d for _, d in best), choice


def _ordered(devices: Iterable[DeviceRoom]) -> tuple[DeviceRoom, ...]:
    return tuple(sorted(devices, key=lambda d: d.index))
