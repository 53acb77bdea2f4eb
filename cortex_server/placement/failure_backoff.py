"""Recent failures, so that the same attempt is not repeated immediately.

Loads that failed, nodes that refused or lost one, devices where one ran out of memory, and instances that would not
drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cortex_common.backoff import Backoff
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.fit import Floors
from cortex_server.placement.plans import Load

REFUSAL_BACKOFF = Backoff(initial_s=0.25, max_s=8.0)
"""How long a node that refused or lost a load is not asked to load that model."""

UNABLE_TIMEOUT_S = 300.0
"""How long a node that lacks a model's weights or engine is not asked to load it."""

CRASH_TIMEOUT_S = 300.0
"""How long a node whose engine crashed with a model ranks behind other nodes with available memory."""


FLOOR_TIMEOUT_S = 3600.0
"""How long a device where a model's engine ran out of memory needs more available memory than it had then."""

FLOOR_MARGIN = 1.02
"""How much more: less could be fluctuation."""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A failure in a row of failures. Times are monotonic seconds.

    Attributes:
        count: failures in a row.
        until: when the next attempt is allowed.
        reason: text for people.
        engine_started: an engine was started, so its log may explain more.
    """

    count: int
    until: float
    reason: str = ""
    engine_started: bool = False


@dataclass(frozen=True, slots=True)
class _Floor:
    mb: int
    until: float


class FailureBackoff:
    """Recent failures by model, node and instance, and when to try again."""

    def __init__(self) -> None:
        self._failed: dict[str, FailureRecord] = {}
        self._refused: dict[tuple[str, str], FailureRecord] = {}
        self._unable: dict[tuple[str, str], FailureRecord] = {}
        self._crashed: dict[tuple[str, str], float] = {}
        self._lost: dict[str, int] = {}
        self._undrainable: dict[InstanceId, float] = {}
        self._floors: dict[str, dict[tuple[str, int, int], _Floor]] = {}
        self._out_of_memory: dict[str, FailureRecord] = {}

    @property
    def undrainable(self) -> Mapping[InstanceId, float]:
        """Instances that would not drain or unload, and until when they are not evicted."""
        return self._undrainable

    @property
    def failed_models(self) -> Mapping[str, FailureRecord]:
        """Models whose last load failed, however long ago."""
        return self._failed

    def active_failure(self, model: str, now: float) -> FailureRecord | None:
        """Return the failure because of which a model is not loaded again yet."""
        record = self._failed.get(model)
        return record if record is not None and now < record.until else None

    def refusing_nodes(self, model: str, now: float) -> dict[str, float]:
        """Return the nodes that are not asked to load a model, and until when."""
        return {n: t.until for (m, n), t in self._refused.items() if m == model and now < t.until}

    def unable_nodes(self, model: str, now: float) -> dict[str, str]:
        """Return the nodes that recently lacked what a model needs, and what that was."""
        records = {n: t for (m, n), t in self._unable.items() if m == model}
        return {n: t.reason for n, t in records.items() if now < t.until}

    def crashed_nodes(self, model: str, now: float) -> frozenset[str]:
        """Return the nodes whose engine recently crashed with a model."""
        return frozenset(n for (m, n), t in self._crashed.items() if m == model and now < t)

    def floors(self, model: str) -> Floors:
        """Return what a model needs at least where its engine ran out of memory."""
        floors = self._floors.get(model, {})
        return {place: floor.mb for place, floor in floors.items()}

    def out_of_memory_reason(self, model: str) -> str | None:
        """Return why a model's engine last ran out of memory; None if that is not recent."""
        record = self._out_of_memory.get(model)
        return record.reason if record is not None and model in self._floors else None

    def out_of_memory_at(self, model: str) -> float | None:
        """Return when a model's engine last ran out of memory; None if that is not recent."""
        record = self._out_of_memory.get(model)
        return None if record is None else record.until - FLOOR_TIMEOUT_S

    def describe(self, model: str, now: float) -> dict[str, str]:
        """Return what recently went wrong with a model, by node, as text for people."""
        reasons = dict.fromkeys(
            self.crashed_nodes(model, now), "an engine crashed with it there recently"
        )
        reasons |= dict.fromkeys(
            (node for node, _, _ in self._floors.get(model, ())),
            "its engine recently ran out of memory there",
        )
        reasons |= {
            n: f"could not start it: {reason}"
            for n, reason in self.unable_nodes(model, now).items()
        }
        return reasons | dict.fromkeys(
            self.refusing_nodes(model, now), "recently refused or lost it"
        )

    def record_failure(
        self, model: str, reason: str, now: float, *, backoff: Backoff, engine_started: bool
    ) -> FailureRecord:
        """Record that a model could not be loaded, with or without an engine having been started."""
        count = _next_count(self._failed.get(model))
        self._failed[model] = record = FailureRecord(
            count, now + backoff.delay_s(count), reason, engine_started
        )
        # Afterwards all nodes are tried again: an operator may have installed what they lacked.
        for key, unable in self._unable.items():
            if key[0] == model:
                self._unable[key] = replace(unable, until=min(unable.until, record.until))
        return record

    def record_refusal(self, model: str, node: str, now: float) -> None:
        """Record that a node lacked memory for a model after all, or lost it."""
        count = _next_count(self._refused.get((model, node)))
        self._refused[model, node] = FailureRecord(count, now + REFUSAL_BACKOFF.delay_s(count))

    def record_unable(self, model: str, node: str, reason: str, now: float) -> None:
        """Record that a node lacks what a model needs; another node may have it."""
        self._unable[model, node] = FailureRecord(1, now + UNABLE_TIMEOUT_S, reason)

    def record_crash(self, model: str, node: str, now: float) -> None:
        """Record that an engine crashed; whether the node or the model is at fault is unknown."""
        self._crashed[model, node] = now + CRASH_TIMEOUT_S

    def record_out_of_memory(self, model: str, load: Load, reason: str, now: float) -> int:
        """Record that an engine ran out of memory while loading; return how often that happened in a row.

        Its devices are not tried again until they have more memory available than they had for this load.
        """
        floors = self._floors.setdefault(model, {})
        for device in load.devices:
            floor_mb = int(load.offered_mb.get(device, 0) * FLOOR_MARGIN) + 1
            place = (load.node, device, len(load.devices))
            floors[place] = _Floor(floor_mb, now + FLOOR_TIMEOUT_S)
        count = _next_count(self._out_of_memory.get(model))
        self._out_of_memory[model] = FailureRecord(count, now + FLOOR_TIMEOUT_S, reason)
        return count

    def record_loss(self, model: str) -> int:
        """Record that a load was lost; return how many in a row."""
        self._lost[model] = self._lost.get(model, 0) + 1
        return self._lost[model]

    def record_undrainable(self, instance: InstanceId, until: float) -> None:
        """Protect an instance from eviction until then."""
        self._undrainable[instance] = until

    def record_success(self, model: str) -> None:
        """Forget a model's failures, because it is ready."""
        self._failed.pop(model, None)
        self._lost.pop(model, None)
        self._out_of_memory.pop(model, None)
        self._refused = {k: t for k, t in self._refused.items() if k[0] != model}

    def clear(self, model: str) -> None:
        """Forget a model's failures, because an operator has acted: the next load starts immediately, on any node."""
        self._failed.pop(model, None)
        self._floors.pop(model, None)
        self._out_of_memory.pop(model, None)
        self._unable = {k: t for k, t in self._unable.items() if k[0] != model}
        self._crashed = {k: t for k, t in self._crashed.items() if k[0] != model}

    def prune(self, now: float, failures_s: float) -> None:
        """Drop expired records; failures count as in a row for `failures_s` after their back-off."""
        self._undrainable = {i: until for i, until in self._undrainable.items() if now < until}
        self._failed = {m: t for m, t in self._failed.items() if now < t.until + failures_s}
        self._unable = {k: t for k, t in self._unable.items() if now < t.until}
        self._crashed = {k: t for k, t in self._crashed.items() if now < t}
        self._out_of_memory = {m: t for m, t in self._out_of_memory.items() if now < t.until}
        floors = {
            model: {place: t for place, t in places.items() if now < t.until}
            for model, places in self._floors.items()
        }
        self._floors = {model: places for model, places in floors.items() if places}


def _next_count(record: FailureRecord | None) -> int:
    return record.count + 1 if record else 1
