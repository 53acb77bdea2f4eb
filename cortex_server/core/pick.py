"""Which of the ready instances a request goes to. Called for every request, so it allocates next to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Protocol, TypeVar

LOAD_WEIGHT = 1.0
"""How much a full instance's load counts against a whole conversation's cached prefix: at 1 a completely matching
instance is left once it is busier, by all its slots, than an idle one without a match."""


class Candidate(Protocol):
    """What `pick` must know of an instance."""

    @property
    def in_flight(self) -> int:
        """Requests under way on it."""
        ...

    @property
    def slots(self) -> int:
        """Requests that it computes side by side, at least 1."""
        ...


C = TypeVar("C", bound=Candidate)

_in_flight = attrgetter("in_flight")


def pick(candidates: Sequence[C]) -> C:
    """The instance with the least in flight relative to its slots; the first of equals.

    Args:
        candidates: ready instances, at least one, none of them draining or on a cordoned node's way out.
    """
    loads = [candidate.in_flight / candidate.slots for candidate in candidates]
    return candidates[loads.index(min(loads))]


def pick_of_alike(candidates: Sequence[C]) -> C:
    """The same where all have the same slots, for a third of what it costs."""
    return min(candidates, key=_in_flight)


def pick_with_affinity(
    candidates: Sequence[C], matches: Mapping[int, float], weight: float = LOAD_WEIGHT
) -> C:
    """The instance with the best match less weighted load, where the same conversation was before.

    Args:
        candidates: as for `pick`.
        matches: share (0 to 1) of the request's prompt that an instance probably has cached, by position in
            `candidates`; absent is 0. A session id that a client sent counts as 1.
        weight: of the load, that is, in flight relative to slots.
    """
    best, most = candidates[0], -math.inf
    for at, candidate in enumerate(candidates):
        score = matches.get(at, 0.0) - weight * candidate.in_flight / candidate.slots
        if score > most:
            best, most = candidate, score
    return best
