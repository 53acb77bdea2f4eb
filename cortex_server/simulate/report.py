"""Runs every policy over a trace, and compares them with what could be done knowing the future."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from cortex_common.schema.instances import ModelId
from cortex_server.lifecycle.measurements import HALF_LIFE_S, decay
from cortex_server.placement.eviction import ModelStats, StatsByModel
from cortex_server.placement.policy import Policy, Strategy
from cortex_server.simulate.engine import Outcome, Simulation
from cortex_server.simulate.fleet import Model, SimulatedFleet
from cortex_server.simulate.trace import Request

ORACLE = "oracle"
"""The policy that knows the future: `cost`, with the time to the next request instead of the past rate."""


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one policy, in seconds.

    Attributes:
        policy: its name.
        requests: requests in the trace.
        cold_starts: requests that waited for a load.
        loads: loads started.
        cold_start_s: seconds of all loads together.
        wait_p50_s: median wait of cold requests.
        wait_p99_s: 99th percentile of their waits.
        evictions: instances evicted.
        refused: requests that got an error.
        took_s: run time of the simulation.
        failed_loads: loads whose engine ran out of memory.
        most_in_vain: the most loads of one model in a row that failed.
        cut: requests that ended with a crashed instance.
        unanswered: requests without an answer at the end; any of them is a livelock.
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
    failed_loads: int = 0
    most_in_vain: int = 0
    cut: int = 0
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Results of all policies on one trace.

    Attributes:
        rows: results by policy.
        bound_s: no policy that serves each request as it arrives spends fewer seconds on loads.
    """

    rows: tuple[Row, ...]
    bound_s: float


class _At(StatsByModel):
    """Statistics of models at one moment, computed on first use."""

    def __init__(
        self, models: Mapping[str, Model], rate: Callable[[str, float], float], now: float
    ) -> None:
        self._models = models
        self._rate = rate
        self._now = now

    @override
    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        found = self._models.get(model)
        if found is None:
            return default
        return ModelStats(found.priority, found.load_s, self._rate(model, self._now))


class Past:
    """Statistics from the requests so far, computed as the gateway does."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self._models = {m.id: m for m in fleet.models}
        self._weights: dict[str, tuple[float, float]] = {}

    def take(self, request: Request) -> None:
        """Count a request."""
        weight, at = self._weights.get(request.model, (0.0, request.at))
        self._weights[request.model] = (decay(weight, request.at - at) + 1, request.at)

    def stats(self, now: float) -> StatsByModel:
        """Return the statistics at a time."""
        return _At(self._models, self._rate, now)

    def _rate(self, model: str, now: float) -> float:
        weight, at = self._weights.get(model, (0.0, now))
        return decay(weight, now - at) * math.log(2) / HALF_LIFE_S


class Future:
    """Statistics from the next request of each model."""

    def __init__(self, fleet: SimulatedFleet, trace: Sequence[Request]) -> None:
        self._models = {m.id: m for m in fleet.models}
        self._times: dict[str, list[float]] = {m.id: [] for m in fleet.models}
        for request in trace:
            if request.model in self._times:
                self._times[request.model].append(request.at)

    def stats(self, now: float) -> StatsByModel:
        """Return the statistics at a time."""
        return _At(self._models, self._rate, now)

    def _rate(self, model: str, now: float) -> float:
        times = self._times[model]
        at = bisect_right(times, now)
        return 1 / max(0.1, times[at] - now) if at < len(times) else 0.0


def compare_policies(
    fleet: SimulatedFleet, trace: Sequence[Request], policies: Iterable[str], policy: Policy
) -> Report:
    """Run each policy over the trace.

    Args:
        fleet: hosts and models.
        trace: requests in order of time.
        policies: names of strategies, and "oracle".
        policy: the other settings.
    """
    rows = tuple(_run(name, fleet, trace, policy) for name in policies)
    return Report(rows, bound(fleet, trace))


def _run(name: str, fleet: SimulatedFleet, trace: Sequence[Request], policy: Policy) -> Row:
    started = time.perf_counter()
    if name == ORACLE:
        future = Future(fleet, trace)
        strategy = Strategy.COST
        simulation = Simulation(fleet, replace(policy, strategy=strategy), future.stats)
    else:
        past = Past(fleet)
        strategy = Strategy(name)
        simulation = Simulation(fleet, replace(policy, strategy=strategy), past.stats, past.take)
    return _row(name, simulation.run(trace), time.perf_counter() - started)


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
        failed_loads=outcome.out_of_memory,
        most_in_vain=outcome.most_in_vain,
        cut=outcome.cut,
        unanswered=outcome.unanswered,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def bound(fleet: SimulatedFleet, trace: Sequence[Request]) -> float:
    """Return the seconds of loading that no policy can avoid that serves each request as it arrives.

    Between two requests for a model, either its memory is kept, which takes size times time, or the model is loaded
    again.
    All memory of the fleet over the whole trace, minus what responses take, is assigned to the gaps that save the most
    seconds for it; a gap can be kept in part, and it does not matter where on the fleet the memory is. Both only help,
    so
    the best real schedule saves no more: it is the fractional knapsack that relaxes the real problem.
    """
    models = {m.id: m for m in fleet.models}
    free_from: dict[str, float] = {}
    gaps: list[tuple[float, float]] = []
    busy = spent = end = 0.0
    for request in trace:
        if (model := models.get(request.model)) is None:
            continue
        ends_at = request.at + request.tokens / model.tokens_per_s
        previous_end = free_from.get(model.id)
        if previous_end is None:
            spent += model.load_s
        elif request.at > previous_end:
            gaps.append((model.load_s, model.vram_mb * (request.at - previous_end)))
        busy += model.vram_mb * max(0.0, ends_at - max(request.at, previous_end or 0.0))
        free_from[model.id] = max(ends_at, previous_end or 0.0)
        end = max(end, ends_at)
    capacity = fleet.capacity_mb * end - busy
    gaps.sort(key=lambda gap: gap[0] / gap[1], reverse=True)
    for seconds, memory in gaps:
        kept = min(1.0, max(0.0, capacity) / memory)
        spent += seconds * (1 - kept)
        capacity -= memory
    return spent
