"""Which GPUs of a node are connected best, for models that are split across several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, islice

from cortex_server.placement.capacity import DeviceCapacity

MAX_COMPARED_SETS = 1024
"""Enough for every set out of 12 devices."""

_RANKS = {"nvlink": 0, "pcie": 1, "numa": 2, "system": 3}
_DESCRIPTIONS = {
    0: "connected by NVLink",
    1: "below one PCIe host bridge",
    2: "on one NUMA node",
}
_UNKNOWN = 3


def best_connected(devices: Sequence[DeviceCapacity], count: int) -> tuple[DeviceCapacity, ...]:
    """Return the `count` devices with the best links between them; of equal ones, those that come first."""
    if len(devices) <= count or not any(d.links for d in devices):
        return tuple(devices[:count])
    sets = islice(combinations(devices, count), MAX_COMPARED_SETS)
    return min(sets, key=_distance)


def describe_links(devices: Sequence[DeviceCapacity]) -> str | None:
    """Return how some devices are connected, as text for people; None for a single one, or if that is unknown."""
    if len(devices) < 2:
        return None
    return _DESCRIPTIONS.get(_distance(devices)[0])


def _distance(devices: Sequence[DeviceCapacity]) -> tuple[int, int]:
    """Return the rank of the worst link, and the sum of all."""
    ranks = [
        _RANKS.get(one.links.get(other.uuid, ""), _UNKNOWN)
        for one, other in combinations(devices, 2)
    ]
    return max(ranks), sum(ranks)
