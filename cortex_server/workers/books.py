"""The control process's books: what workers report, entered where one process would have counted it itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cortex_server.auth.usage import Usage
from cortex_server.fleet.circuit_breaker import BreakerState
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import NOWHERE, Metrics
from cortex_server.proxy.access_log import AccessLog
from cortex_server.workers.wire import Ended, Pulse, Spec

WORKER_DIED = "worker_died"
"""The code of requests that ended with the process that had them."""


class Books:
    """See the module.

    Args:
        fleet: whose targets requests are on.
        metrics: where requests are counted.
        usage: where what keys used is counted.
        journal: where each request leaves its line.
    """

    def __init__(self, fleet: Fleet, metrics: Metrics, usage: Usage, access_log: AccessLog) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._usage = usage
        self._access_log = access_log
        self._numbers: dict[Endpoint, int] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._choices: frozenset[str] = frozenset()
        self._last = 0
        self._flights: dict[int, dict[int, int]] = {}

    # -- the routing table ---------------------------------------------------------------------

    def table(self) -> dict[str, tuple[Spec, ...]]:
        """The rows of each model, as workers route by them."""
        rows: dict[str, list[Spec]] = {}
        here = dict(self._fleet.endpoints)
        for gone in [t for t in self._numbers if t not in here and not t.in_flight]:
            del self._endpoints[self._numbers.pop(gone)]
        order = {node: at for at, node in enumerate(self._fleet.entries)}
        for endpoint in sorted(here, key=lambda t: order.get(t.node, 0)):
            rows.setdefault(endpoint.model, []).append(self._spec(endpoint, usable=here[endpoint]))
        self._choices = frozenset(model for model, specs in rows.items() if len(specs) > 1)
        return {model: tuple(specs) for model, specs in rows.items()}

    def _spec(self, endpoint: Endpoint, *, usable: bool) -> Spec:
        number = self._numbers.get(endpoint)
        if number is None:
            self._last += 1
            number = self._numbers[endpoint] = self._last
            self._endpoints[number] = endpoint
        breaker = endpoint.breaker
        return Spec(
            number=number,
            id=endpoint.id,
            model=endpoint.model,
            node=endpoint.node,
            url=endpoint.url,
            slots=endpoint.slots,
            engine=endpoint.engine,
            context=endpoint.context,
            served_as=endpoint.served_as,
            retries=endpoint.retries,
            overflow=endpoint.overflow,
            usable=usable,
            trial=breaker.standing is BreakerState.ON_TRIAL,
            suspect=breaker.failures > 0 or breaker.standing is not BreakerState.CLOSED,
        )

    def endpoint(self, number: int) -> Endpoint | None:
        """The target of that number, while anybody may speak of it."""
        return self._endpoints.get(number)

    def with_others(self, numbers: Iterable[int] | None = None) -> set[int]:
        """Those of the targets that are not the only ones of their model."""
        found = self._endpoints.keys() if numbers is None else numbers
        return {
            n for n in found if n in self._endpoints and self._endpoints[n].model in self._choices
        }

    # -- requests under way --------------------------------------------------------------------

    def flights(self, worker: int, told: Iterable[tuple[int, int, int]]) -> None:
        """A worker told of its requests: by target, those that it has, and the most that it had."""
        mine = self._flights.setdefault(worker, {})
        for number, now, most in told:
            endpoint = self._endpoints.get(number)
            if endpoint is None:
                continue
            before = mine.pop(number, 0)
            if now:
                mine[number] = now
            self._fleet.counted(endpoint, now - before, endpoint.in_flight - before + most)

    def lost(self, worker: int) -> set[int]:
        """A worker is gone, and its requests with it; the targets that had them."""
        had = self._flights.pop(worker, {})
        for number, count in had.items():
            if (endpoint := self._endpoints.get(number)) is not None:
                self._fleet.counted(endpoint, -count, 0)
                self._metrics.series(endpoint.model, endpoint.node).lost(count, WORKER_DIED)
                endpoint.counts.requests += count
                endpoint.counts.errors += count
        return set(had)

    def elsewhere(self, worker: int, numbers: Iterable[int]) -> dict[int, int]:
        """What all workers but this one have on targets."""
        mine = self._flights.get(worker, {})
        return {
            n: endpoint.in_flight - mine.get(n, 0)
            for n in numbers
            if (endpoint := self._endpoints.get(n)) is not None
        }

    # -- requests that ended -------------------------------------------------------------------

    def ended(self, told: Ended) -> None:
        """Enter a request; see `settlement.settle`, which does this where there are no workers."""
        line = told.line
        error = None if line.outcome == "ok" else line.outcome
        self._metrics.series(line.model or NOWHERE, line.node or NOWHERE).finished(
            told.seconds,
            told.first,
            line.prompt_tokens,
            line.completion_tokens,
            cold=line.cold_start,
            error=error,
            tokens_cached=told.cached,
            queued=told.queued,
        )
        if error == "client_disconnected":
            self._metrics.disconnects += 1
        endpoint = None if told.endpoint is None else self._endpoints.get(told.endpoint)
        if endpoint is not None:
            endpoint.counts.add(
                line.prompt_tokens, line.completion_tokens, failed=error is not None
            )
        if told.repairs:
            self._metrics.repaired(Counter(told.repairs), line.model or NOWHERE, told.engine)
        if line.key is not None and line.model is not None:
            self._usage.count(
                line.key,
                line.model,
                line.prompt_tokens,
                line.completion_tokens,
                failed=error is not None,
            )
        self._access_log.write(line)

    def pulse(self, told: Pulse) -> None:
        """Enter what a worker's loop and way to the engines took."""
        self._metrics.overhead.add(told.overhead.counts, told.overhead.total)
        self._metrics.lag.add(told.lag.counts, told.lag.total)


def changes(
    before: Mapping[str, tuple[Spec, ...]], now: Mapping[str, tuple[Spec, ...]]
) -> dict[str, tuple[Spec, ...]]:
    """The models whose rows differ, with their rows now."""
    models = before.keys() | now.keys()
    return {m: now.get(m, ()) for m in models if before.get(m) != now.get(m)}
