"""The requests that wait for each model, in order, with their deadlines."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_server.placement.fit import ANYWHERE, PlacementConstraints


@dataclass(frozen=True, slots=True)
class LoadKey:
    """What requests wait for; all requests with the same key are answered together.

    Attributes:
        model: the model's id.
        constraints: the node and devices that the instance must be on.
        replica: only a further instance will do, even if others are ready.
        may_evict: whether other instances may be evicted for it.
    """

    model: str
    constraints: PlacementConstraints = ANYWHERE
    replica: bool = False
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A waiting request. Times are monotonic seconds.

    Attributes:
        id: unique among all requests of this gateway.
        model_config: the model's config.
        key: what it waits for.
        queued_at: when it was queued.
        deadline: when it is answered with an error.
        force: requested by an operator: load immediately, even if a load failed recently.
    """

    id: int
    model_config: ModelConfig
    key: LoadKey
    queued_at: float
    deadline: float
    force: bool = False


@dataclass(slots=True)
class LoadQueue:
    """The requests with one key, in order of arrival.

    Attributes:
        key: what they wait for.
        model_config: the model's config.
        wait_reason: why they wait according to the last plan, as text for people.
        requests: the requests by id.
    """

    key: LoadKey
    model_config: ModelConfig
    wait_reason: str | None = None
    requests: dict[int, LoadRequest] = field(default_factory=dict)

    @property
    def queued_at(self) -> float:
        """When the oldest request was queued, in monotonic seconds."""
        return next(iter(self.requests.values())).queued_at


class LoadQueues:
    """All queues. They are served in order of their oldest request, so that no model starves."""

    def __init__(self) -> None:
        self._queues: dict[LoadKey, LoadQueue] = {}
        self._key_by_request: dict[int, LoadKey] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._key_by_request)

    def __contains__(self, key: LoadKey) -> bool:
        return key in self._queues

    def count(self, model: str) -> int:
        """Return the number of requests waiting for a model."""
        return self._counts.get(model, 0)

    def add(self, request: LoadRequest) -> None:
        """Append a request to its queue."""
        queue = self._queues.setdefault(request.key, LoadQueue(request.key, request.model_config))
        queue.model_config = request.model_config
        queue.requests[request.id] = request
        self._key_by_request[request.id] = request.key
        self._counts[request.key.model] = self.count(request.key.model) + 1
        heapq.heappush(self._deadlines, (request.deadline, request.id))

    def update_model_config(self, model_config: ModelConfig) -> None:
        """Replace the model config of the requests waiting for its model."""
        for queue in self.for_model(model_config.id):
            queue.model_config = model_config

    def remove(self, request_id: int) -> LoadRequest | None:
        """Remove a request; None when it has been answered already."""
        if (key := self._key_by_request.pop(request_id, None)) is None:
            return None
        queue = self._queues[key]
        request = queue.requests.pop(request_id)
        if not queue.requests:
            del self._queues[key]
        if self._counts[key.model] == 1:
            del self._counts[key.model]
        else:
            self._counts[key.model] -= 1
        return request

    def pop_all(self, key: LoadKey) -> tuple[LoadRequest, ...]:
        """Remove all requests with a key, in order."""
        queue = self._queues.get(key)
        requests = tuple(queue.requests.values()) if queue is not None else ()
        for request in requests:
            self.remove(request.id)
        return requests

    def pop_expired(self, now: float) -> Iterator[LoadRequest]:
        """Remove the requests whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            if (request := self.remove(request_id)) is not None:
                yield request

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a waiting request."""
        while self._deadlines and self._deadlines[0][1] not in self._key_by_request:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def by_age(self) -> list[LoadQueue]:
        """Return all queues, the one with the oldest request first."""
        return sorted(self._queues.values(), key=lambda q: q.queued_at)

    def for_model(self, model: str) -> list[LoadQueue]:
        """Return the queues of one model."""
        return [queue for key, queue in self._queues.items() if key.model == model]

    def wait_reason(self, model: str) -> str | None:
        """Return why requests for the model wait, where the last plan gave a reason."""
        return next(
            (q.wait_reason for q in self.for_model(model) if q.wait_reason is not None), None
        )

    def position_of(self, request: LoadRequest) -> int:
        """Return the queue position of a request that was just removed, 1 for the front."""
        return 1 + sum(
            q.queued_at < request.queued_at for q in self._queues.values() if q.key != request.key
        )

    def position(self, model: str) -> int:
        """Return the queue position of a model, 1 for the front; 0 when no request waits for it."""
        for position, queue in enumerate(self.by_age(), start=1):
            if queue.key.model == model:
                return position
        return 0
