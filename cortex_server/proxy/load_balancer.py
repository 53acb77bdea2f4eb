"""Choice among several ready instances: one that the prompt fits, and that has the conversation cached.

Most models have one instance, or several equal ones, and most requests name no session; then this costs a comparison or
two. Equally good instances take turns, so that a failing one does not get all requests of an idle gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Protocol, TypeVar

from cortex_common.errors import PromptTooLong
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.adapters.base import DialectAdapter

BLOCK_BYTES = 1024
"""Smaller blocks are more precise but cost more to hash; engines cache in blocks of a few dozen tokens."""

MAX_BLOCKS = 64
"""Blocks hashed per prompt: what two prompts share beyond 64 KiB changes no choice."""


def block_hashes(prompt: bytes) -> tuple[int, ...]:
    """Return a hash of each whole block of a prompt, which covers the blocks before it; stable within a process."""
    hashes: list[int] = []
    value = 0
    for start in range(
        0, min(len(prompt), BLOCK_BYTES * MAX_BLOCKS) - BLOCK_BYTES + 1, BLOCK_BYTES
    ):
        value = hash((value, prompt[start : start + BLOCK_BYTES]))
        hashes.append(value)
    return tuple(hashes)


class Affinity:
    """Remembers the instance that each block was last sent to.

    Args:
        max_blocks: Number of blocks to remember, the most recent ones; about 200 bytes each.
    """

    def __init__(self, max_blocks: int = 100_000) -> None:
        self._max_blocks = max_blocks
        self._seen: dict[int, InstanceId] = {}

    def remember(self, hashes: Sequence[int], instance: InstanceId) -> None:
        """Record that a prompt with these blocks was sent to an instance."""
        for block in hashes:
            self._seen.pop(block, None)
            self._seen[block] = instance
        while len(self._seen) > self._max_blocks:
            del self._seen[next(iter(self._seen))]

    def matches(self, hashes: Sequence[int], instances: Sequence[InstanceId]) -> dict[int, float]:
        """Return the share of a prompt that instances have probably cached, by position; 0 for the others."""
        for at in range(len(hashes) - 1, -1, -1):
            instance = self._seen.get(hashes[at])
            if instance is not None and instance in instances:
                return {instances.index(instance): (at + 1) / len(hashes)}
        return {}


LOAD_WEIGHT = 1.0
"""Weight of an instance's load against a cached prefix: at 1, a completely matching instance is given up once all of
its slots are busier than those of an idle one without a match."""


class Candidate(Protocol):
    """What `pick` needs to know about an instance."""

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        ...

    @property
    def slots(self) -> int:
        """Number of requests that it computes in parallel, at least 1."""
        ...


C = TypeVar("C", bound=Candidate)

_in_flight = attrgetter("in_flight")


def pick(candidates: Sequence[C], turn: int = 0) -> C:
    """Return the instance with the fewest requests in flight per slot; equal ones take turns.

    Args:
        candidates: Ready instances, at least one.
        turn: Number of the choice, which says whose turn it is.
    """
    loads = [candidate.in_flight / candidate.slots for candidate in candidates]
    least = min(loads)
    if loads.count(least) == 1:
        return candidates[loads.index(least)]
    equal = [candidate for candidate, load in zip(candidates, loads, strict=True) if load == least]
    return equal[turn % len(equal)]


def pick_of_equal(candidates: Sequence[C], turn: int = 0) -> C:
    """Return the same as `pick` when all have the same slots, for a third of the cost."""
    loads = list(map(_in_flight, candidates))
    least = min(loads)
    if loads.count(least) == 1:
        return candidates[loads.index(least)]
    equal = [candidate for candidate in candidates if candidate.in_flight == least]
    return equal[turn % len(equal)]


def pick_with_affinity(
    candidates: Sequence[C],
    matches: Mapping[int, float],
    turn: int = 0,
    weight: float = LOAD_WEIGHT,
) -> C:
    """Return the instance with the best match minus weighted load; equal ones take turns.

    Args:
        candidates: Ready instances, at least one.
        matches: Share (0 to 1) of the prompt that an instance has probably cached, by position in `candidates`; 0 if
            absent. A session id sent by the client counts as 1.
        turn: Number of the choice, which says whose turn it is.
        weight: Weight of the load, which is requests in flight per slot.
    """
    scores = [
        matches.get(at, 0.0) - weight * candidate.in_flight / candidate.slots
        for at, candidate in enumerate(candidates)
    ]
    best = max(scores)
    equal = [
        candidate for candidate, score in zip(candidates, scores, strict=True) if score == best
    ]
    return equal[turn % len(equal)]


Pick = Callable[[Sequence[Endpoint], int], Endpoint]

MAX_SESSIONS = 20_000

_MARGIN = 1.25
"""Prompt estimates are rough: where there is a choice, this multiple of the estimate must fit."""

_REJECT_ABOVE = 4.0
"""A prompt this many times longer than the largest context is rejected; shorter ones are left to the engine's count."""


class LoadBalancer:
    """Chooses an instance for each request.

    Args:
        sessions: Where the instances of sessions are remembered.
    """

    def __init__(self, sessions: Affinity | None = None) -> None:
        self._sessions = sessions or Affinity(MAX_SESSIONS)
        self._turn = 0
        self._pick_by_model: dict[ModelId, tuple[Sequence[Endpoint], Pick | None]] = {}

    def choose(
        self, candidates: Sequence[Endpoint], session: bytes, adapter: DialectAdapter
    ) -> tuple[Endpoint, bytes]:
        """Return the instance, and the reason for the choice.

        Args:
            candidates: Ready instances of one model, at least one.
            session: Session id from the request's head, if any; otherwise the body's is used.
            adapter: Adapter of the request.

        Raises:
            PromptTooLong: The prompt is far longer than any of them accepts.
            BadRequest: The request is invalid.
        """
        if len(candidates) == 1:
            return candidates[0], b"only"
        session = session or adapter.session
        turn = self._turn
        self._turn += 1
        by_load = None if session else self._by_load(candidates)
        if by_load is not None:
            return by_load(candidates, turn), b"least-busy"
        fitting = _fitting(candidates, adapter)
        reason = b"least-busy" if len(fitting) == len(candidates) else b"context"
        fitting = _without_overflow(fitting)
        if not session:
            return pick(fitting, turn), reason
        hashes = (hash((candidates[0].model, session)),)
        matches = self._sessions.matches(hashes, [c.id for c in fitting])
        endpoint = pick_with_affinity(fitting, matches, turn)
        self._sessions.remember(hashes, InstanceId(endpoint.id))
        known = [fitting[at].id for at in matches]
        return endpoint, b"session" if endpoint.id in known else reason

    def _by_load(self, candidates: Sequence[Endpoint]) -> Pick | None:
        """Return how to choose if only load matters; cached, because the list rarely changes."""
        model = candidates[0].model
        cached = self._pick_by_model.get(model)
        if cached is not None and cached[0] is candidates:
            return cached[1]
        by_load: Pick | None = None
        if len({c.context for c in candidates}) == 1 and not any(c.overflow for c in candidates):
            by_load = pick_of_equal if len({c.slots for c in candidates}) == 1 else pick
        self._pick_by_model[model] = candidates, by_load
        return by_load


def _without_overflow(candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return the instances that are not overflow while one of them has a free slot, else all."""
    if not any(c.overflow for c in candidates):
        return candidates
    primary = [c for c in candidates if not c.overflow]
    return primary if any(c.in_flight < c.slots for c in primary) else candidates


def _fitting(candidates: Sequence[Endpoint], adapter: DialectAdapter) -> Sequence[Endpoint]:
    """Return the instances with enough context for the prompt if they differ in it; else the largest ones."""
    contexts = {c.context for c in candidates}
    if len(contexts) == 1:
        return candidates
    prompt = adapter.prompt_tokens()
    fitting = [c for c in candidates if c.context is None or prompt * _MARGIN <= c.context]
    if fitting:
        return fitting
    most = max(c for c in contexts if c is not None)
    if prompt > most * _REJECT_ABOVE:
        raise PromptTooLong(
            f"the prompt has about {prompt} tokens, and no instance takes more than {most}",
            details={"n_prompt_tokens": prompt, "n_ctx": most},
        )
    return [c for c in candidates if c.context == most]
