"""Values that a single snapshot does not contain: rates, and recent readings of each device. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_common.schema.fleet import FleetSnapshot

MAX_SAMPLES = 60
"""Samples kept per device."""

SAMPLE_S = 1.0
"""Minimum seconds between two samples; snapshots in between are ignored here."""

RATE_WINDOW = 6
"""Number of samples that a rate is computed over: long enough to be steady, short enough to be current."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Monotonic counters of a model."""

    requests: int = 0
    errors: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """Rates of one model, or summed over all.

    Attributes:
        requests: requests per second.
        errors: errors per second.
        tokens: output tokens per second.
    """

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        """Return the sum."""
        return Rate(
            self.requests + other.requests, self.errors + other.errors, self.tokens + other.tokens
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters of all models at one moment.

    Attributes:
        at: Unix seconds.
        totals: counters by model.
    """

    at: float
    totals: Mapping[str, Totals]


Series = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The most recent samples.

    Attributes:
        gateway: start time of the gateway that the samples come from; a restarted gateway counts from zero.
        samples: samples of the counters, oldest first.
        rates: rates over the window, by model; empty until there are two samples.
        utilization: percent, by "node/index".
        memory: fraction of memory in use, 0 to 1, by "node/index".
    """

    gateway: float = 0.0
    samples: tuple[Sample, ...] = ()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    utilization: Mapping[str, Series] = field(default_factory=dict)
    memory: Mapping[str, Series] = field(default_factory=dict)

    def after(self, snapshot: FleetSnapshot) -> History:
        """Return the history extended by a snapshot."""
        samples = self.samples if snapshot.started_at == self.gateway else ()
        if samples and snapshot.at - samples[-1].at < SAMPLE_S:
            return self
        sample = Sample(
            snapshot.at,
            {m.id: Totals(m.requests, m.errors, m.tokens_out) for m in snapshot.models},
        )
        utilization: dict[str, Series] = {}
        memory: dict[str, Series] = {}
        for node in snapshot.nodes:
            for device in node.devices:
                key = f"{node.name}/{device.index}"
                used = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else None
                utilization[key] = _append(self.utilization.get(key, ()), device.utilization_pct)
                memory[key] = _append(self.memory.get(key, ()), used)
        samples = (*samples, sample)[-RATE_WINDOW:]
        return History(snapshot.started_at, samples, _rates(samples), utilization, memory)


def _rates(samples: tuple[Sample, ...]) -> dict[str, Rate]:
    if len(samples) < 2:
        return {}
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    rates = {}
    for model, now in last.totals.items():
        before = first.totals.get(model, Totals())
        rates[model] = Rate(
            max(0, now.requests - before.requests) / seconds,
            max(0, now.errors - before.errors) / seconds,
            max(0, now.tokens_out - before.tokens_out) / seconds,
        )
    return rates


def _append(series: Series, value: float | None) -> Series:
    return (*series, value)[-MAX_SAMPLES:]
