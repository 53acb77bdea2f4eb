"""Which of several ready instances a request goes to: one where its prompt fits, and where its conversation was before.

Most models have one instance, or several alike, and most requests name no session; then this costs a comparison or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Protocol, TypeVar

from cortex_common.errors import PromptTooLong
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.adapter import DialectAdapter

BLOCK_BYTES = 1024
"""Finer blocks tell closer, and cost more to name; engines cache in blocks of some dozen tokens."""

MOST_BLOCKS = 64
"""Blocks named of one prompt: what two prompts share beyond 64 KiB changes no choice."""


def block_names(prompt: bytes) -> tuple[int, ...]:
    """The name of each whole block of a prompt; the same in processes with one hash seed."""
    names: list[int] = []
    name = 0
    for start in range(
        0, min(len(prompt), BLOCK_BYTES * MOST_BLOCKS) - BLOCK_BYTES + 1, BLOCK_BYTES
    ):
        name = hash((name, prompt[start : start + BLOCK_BYTES]))
        names.append(name)
    return tuple(names)


class Affinity:
    """Remembers where blocks were seen last, the most recent ones.

    Args:
        most: blocks that are remembered; some 200 bytes each.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._seen: dict[int, InstanceId] = {}

    def remember(self, names: Sequence[int], instance: InstanceId) -> None:
        """A prompt with these blocks went to this instance."""
        for name in names:
            self._seen.pop(name, None)
            self._seen[name] = instance
        while len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]

    def matches(self, names: Sequence[int], instances: Sequence[InstanceId]) -> dict[int, float]:
        """The share of a prompt that instances have probably cached, by their position; the rest have 0."""
        for at in range(len(names) - 1, -1, -1):
            instance = self._seen.get(names[at])
            if instance is not None and instance in instances:
                return {instances.index(instance): (at + 1) / len(names)}
        return {}


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


Pick = Callable[[Sequence[Endpoint]], Endpoint]

MOST_SESSIONS = 20_000

_ROOM = 1.25
"""Estimates of a prompt are rough: where there is a choice, this much more than the estimate must fit."""

_FAR_BEYOND = 4.0
"""A prompt of which not even a quarter may fit is refused unasked; closer ones the engine counts exactly."""


class LoadBalancer:
    """Remembers the last instance of the latest sessions, and which models have nothing but like instances.

    Args:
        seen: where the sessions are remembered.
    """

    def __init__(self, seen: Affinity | None = None) -> None:
        self._seen = seen or Affinity(MOST_SESSIONS)
        self._compared: dict[ModelId, tuple[Sequence[Endpoint], Pick | None]] = {}

    def choose(
        self, candidates: Sequence[Endpoint], session: bytes, adapter: DialectAdapter
    ) -> tuple[Endpoint, bytes]:
        """The instance, and why it is the one.

        Args:
            candidates: ready instances of one model, at least one.
            session: that the request's head names; empty where only its body may.
            adapter: of the request.

        Raises:
            PromptTooLong: the prompt is far beyond what any of them can take.
            BadRequest: the request can't be understood.
        """
        if len(candidates) == 1:
            return candidates[0], b"only"
        session = session or adapter.session
        by_load = None if session else self._by_load(candidates)
        if by_load is not None:
            return by_load(candidates), b"least-busy"
        fitting = _fitting(candidates, adapter)
        reason = b"least-busy" if len(fitting) == len(candidates) else b"context"
        fitting = _at_home(fitting)
        if not session:
            return pick(fitting), reason
        names = (hash((candidates[0].model, session)),)
        matches = self._seen.matches(names, [c.id for c in fitting])
        endpoint = pick_with_affinity(fitting, matches)
        self._seen.remember(names, InstanceId(endpoint.id))
        known = [fitting[at].id for at in matches]
        return endpoint, b"session" if endpoint.id in known else reason

    def _by_load(self, candidates: Sequence[Endpoint]) -> Pick | None:
        """How to choose where their load is all that counts; compared once, since the list changes rarely."""
        model = candidates[0].model
        known = self._compared.get(model)
        if known is not None and known[0] is candidates:
            return known[1]
        by_load: Pick | None = None
        if len({c.context for c in candidates}) == 1 and not any(c.overflow for c in candidates):
            by_load = pick_of_alike if len({c.slots for c in candidates}) == 1 else pick
        self._compared[model] = candidates, by_load
        return by_load


def _at_home(candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Those that are no overflow while one of them has a free slot, else all."""
    if not any(c.overflow for c in candidates):
        return candidates
    home = [c for c in candidates if not c.overflow]
    return home if any(c.in_flight < c.slots for c in home) else candidates


def _fitting(candidates: Sequence[Endpoint], adapter: DialectAdapter) -> Sequence[Endpoint]:
    """Those with enough context for the prompt, where they differ in it; else the largest."""
    contexts = {c.context for c in candidates}
    if len(contexts) == 1:
        return candidates
    prompt = adapter.prompt_tokens()
    fitting = [c for c in candidates if c.context is None or prompt * _ROOM <= c.context]
    if fitting:
        return fitting
    most = max(c for c in contexts if c is not None)
    if prompt > most * _FAR_BEYOND:
        raise PromptTooLong(
            f"the prompt has about {prompt} tokens, and no instance takes more than {most}",
            details={"n_prompt_tokens": prompt, "n_ctx": most},
        )
    return [c for c in candidates if c.context == most]
