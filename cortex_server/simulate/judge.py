"""Runs every policy over a trace, and sets them beside what could be done knowing the future."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cortex_common.schema.instances import ModelId
from cortex_server.lifecycle.measurements import HALF_LIFE_S, decayed
from cortex_server.placement.eviction import ModelStats, StatsByModel
from cortex_server.placement.policy import Policy, Strategy
from cortex_server.simulate.engine import Outcome, Simulation
from cortex_server.simulate.fleet import Model, SimulatedFleet
from cortex_server.simulate.trace import Request

ORACLE = "oracle"
"""The policy that knows the future: `cost`, with the time to the next request in place of the past rate."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy did; seconds.

    Attributes:
        cold_starts: requests that waited for a load.
        cold_start_s: seconds of all loads together.
        wait_p50_s, wait_p99_s: what cold requests waited.
        took_s: how long the simulation ran.
    """

    policy: str
    requests: int
    cold_starts: int
    loads: int
    cold_start_s: float
    wait_p50_s: float
    wait_p99_s: float
    evictions: int
    refused: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All policies over one trace.

    Attributes:
        bound_s: no policy that serves each request as it comes spends fewer seconds on loads.
    """

    rows: tuple[Row, ...]
    bound_s: float


class _At:
    """How models stand at one moment; worked out when asked for."""

    def __init__(
        self, models: Mapping[str, Model], rate: Callable[[str, float], float], now: float
    ) -> None:
        self._models = models
        self._rate = rate
        self._now = now

    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        """See `StatsByModel.get`."""
        found = self._models.get(model)
        if found is None:
            return default
        return ModelStats(found.priority, found.load_s, self._rate(model, self._now))


class Past:
    """How models stand by what has been asked so far, as the gateway reckons it."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self._models = {m.id: m for m in fleet.models}
        self._weights: dict[str, tuple[float, float]] = {}

    def take(self, request: Request) -> None:
        """Count a request."""
        weight, at = self._weights.get(request.model, (0.0, request.at))
        self._weights[request.model] = (decayed(weight, request.at - at) + 1, request.at)

    def stats(self, now: float) -> StatsByModel:
        """See `engine.StandingsAt`."""
        return _At(self._models, self._rate, now)

    def _rate(self, model: str, now: float) -> float:
        weight, at = self._weights.get(model, (0.0, now))
        return decayed(weight, now - at) * math.log(2) / HALF_LIFE_S


class Future:
    """How models stand by when they will be asked for next."""

    def __init__(self, fleet: SimulatedFleet, trace: Sequence[Request]) -> None:
        self._models = {m.id: m for m in fleet.models}
        self._times: dict[str, list[float]] = {m.id: [] for m in fleet.models}
        for request in trace:
            if request.model in self._times:
                self._times[request.model].append(request.at)

    def stats(self, now: float) -> StatsByModel:
        """See `engine.StandingsAt`."""
        return _At(self._models, self._rate, now)

    def _rate(self, model: str, now: float) -> float:
        times = self._times[model]
        at = bisect_right(times, now)
        return 1 / max(0.1, times[at] - now) if at < len(times) else 0.0


def judge(
    fleet: SimulatedFleet, trace: Sequence[Request], policies: Iterable[str], policy: Policy
) -> Report:
    """Run each policy over the trace.

    Args:
        fleet: hosts and models.
        trace: in order of time.
        policies: names of strategies, and "oracle".
        policy: the other settings.
    """
    rows = tuple(_run(name, fleet, trace, policy) for name in policies)
    return Report(rows, bound(fleet, trace))


def _run(name: str, fleet: SimulatedFleet, trace: Sequence[Request], policy: Policy) -> Row:
    began = time.perf_counter()
    if name == ORACLE:
        future = Future(fleet, trace)
        strategy = Strategy.COST
        simulation = Simulation(fleet, replace(policy, strategy=strategy), future.stats)
    else:
        past = Past(fleet)
        strategy = Strategy(name)
        simulation = Simulation(fleet, replace(policy, strategy=strategy), past.stats, past.take)
    return _row(name, simulation.run(trace), time.perf_counter() - began)


def _row(name: str, outcome: Outcome, took_s: float) -> Row:
    waits = sorted(outcome.waits)
    return Row(
        policy=name,
        requests=outcome.requests,
        cold_starts=outcome.cold,
        loads=outcome.loads,
        cold_start_s=outcome.load_s,
        wait_p50_s=_quantile(waits, 0.5),
        wait_p99_s=_quantile(waits, 0.99),
        evictions=outcome.evictions,
        refused=outcome.refused,
        took_s=took_s,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def bound(fleet: SimulatedFleet, trace: Sequence[Request]) -> float:
    """Seconds of loading that no policy can save that serves each request as it comes.

    Between two requests for a model its memory is either kept, which takes size times time, or the model is loaded
    again. All memory of the fleet over the whole trace, less what answering takes, is handed out to the gaps that save
    most seconds for it; a gap may be kept in part, and where on the fleet the memory lies does not matter. Both only
    help, so the best real schedule saves no more (it is the fractional knapsack that relaxes the real problem).
    """
    models = {m.id: m for m in fleet.models}
    free_from: dict[str, float] = {}
    gaps: list[tuple[float, float]] = []
    busy = spent = end = 0.0
    for request in trace:
        if (model := models.get(request.model)) is None:
            continue
        until = request.at + request.tokens / model.tokens_per_s
        before = free_from.get(model.id)
        if before is None:
            spent += model.load_s
        elif request.at > before:
            gaps.append((model.load_s, model.vram_mb * (request.at - before)))
        busy += model.vram_mb * max(0.0, until - max(request.at, before or 0.0))
        free_from[model.id] = max(until, before or 0.0)
        end = max(end, until)
    capacity = fleet.capacity_mb * end - busy
    gaps.sort(key=lambda gap: gap[0] / gap[1], reverse=True)
    for seconds, memory in gaps:
        kept = min(1.0, max(0.0, capacity) / memory)
        spent += seconds * (1 - kept)
        capacity -= memory
    return spent
