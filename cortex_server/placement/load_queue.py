"""Who waits for which model, in what order and until when."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_server.placement.fit import ANYWHERE, PlacementConstraints


@dataclass(frozen=True, slots=True)
class LoadKey:
    """What one or many wait for; all waiters of a goal are answered together.

    Attributes:
        model: its id.
        where: only an instance there will do.
        replica: only a further instance will do, whatever is ready.
        may_evict: whether others may go for it.
    """

    model: str
    where: PlacementConstraints = ANYWHERE
    replica: bool = False
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Somebody who waits. Times are monotonic seconds.

    Attributes:
        id: unique among all who ever asked.
        since: when it asked.
        deadline: when it gives up.
        insists: an operator, for whom a load that failed lately is tried again at once.
    """

    id: int
    model_config: ModelConfig
    key: LoadKey
    since: float
    deadline: float
    force: bool = False


@dataclass(slots=True)
class LoadQueue:
    """The waiters of one goal, in the order in which they asked.

    Attributes:
        why: what is waited for, for people, as the last plan told it.
    """

    key: LoadKey
    model_config: ModelConfig
    why: str | None = None
    waiters: dict[int, LoadRequest] = field(default_factory=dict)

    @property
    def since(self) -> float:
        """When the one who waits longest asked."""
        return next(iter(self.waiters.values())).since


class LoadQueues:
    """All queues. Goals come in the order of their longest waiter, which is what keeps anybody from starving."""

    def __init__(self) -> None:
        self._queues: dict[LoadKey, LoadQueue] = {}
        self._goal_of: dict[int, LoadKey] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._goal_of)

    def __contains__(self, key: LoadKey) -> bool:
        return key in self._queues

    def count(self, model: str) -> int:
        """How many wait for a model."""
        return self._counts.get(model, 0)

    def add(self, ask: LoadRequest) -> None:
        """Put a waiter at the end of its queue."""
        queue = self._queues.setdefault(ask.key, LoadQueue(ask.key, ask.model_config))
        queue.model_config = ask.model_config
        queue.waiters[ask.id] = ask
        self._goal_of[ask.id] = ask.key
        self._counts[ask.key.model] = self.count(ask.key.model) + 1
        heapq.heappush(self._deadlines, (ask.deadline, ask.id))

    def use_model_config(self, model_config: ModelConfig) -> None:
        """Serve by this profile whoever waits for its model."""
        for queue in self.of(model_config.id):
            queue.model_config = model_config

    def remove(self, waiter: int) -> LoadRequest | None:
        """Take out a waiter; None when it has been answered already."""
        if (key := self._goal_of.pop(waiter, None)) is None:
            return None
        queue = self._queues[key]
        ask = queue.waiters.pop(waiter)
        if not queue.waiters:
            del self._queues[key]
        if self._counts[key.model] == 1:
            del self._counts[key.model]
        else:
            self._counts[key.model] -= 1
        return ask

    def empty(self, key: LoadKey) -> tuple[LoadRequest, ...]:
        """Take out all waiters of a goal, in order."""
        queue = self._queues.get(key)
        asks = tuple(queue.waiters.values()) if queue is not None else ()
        for ask in asks:
            self.remove(ask.id)
        return asks

    def overdue(self, now: float) -> Iterator[LoadRequest]:
        """Take out those whose deadline has come."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, waiter = heapq.heappop(self._deadlines)
            if (ask := self.remove(waiter)) is not None:
                yield ask

    def next_deadline(self) -> float | None:
        """The first deadline that somebody still waits for."""
        while self._deadlines and self._deadlines[0][1] not in self._goal_of:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def queues(self) -> list[LoadQueue]:
        """All queues, the one with the longest waiter first."""
        return sorted(self._queues.values(), key=lambda q: q.since)

    def of(self, model: str) -> list[LoadQueue]:
        """The queues of one model."""
        return [q for g, q in self._queues.items() if g.model == model]

    def why(self, model: str) -> str | None:
        """What the model's requests wait for, as far as that was told."""
        return next((q.why for q in self.of(model) if q.why is not None), None)

    def place_of(self, ask: LoadRequest) -> int:
        """How many goals wait longer than somebody who has just been taken out, plus one."""
        return 1 + sum(q.since < ask.since for q in self._queues.values() if q.key != ask.key)

    def position(self, model: str) -> int:
        """How many goals wait longer than the model's, plus one; 0 when nobody waits for it."""
        for at, queue in enumerate(self.queues(), start=1):
            if queue.key.model == model:
                return at
        return 0
