"""What a single snapshot can't tell: rates, and how a device did over the last minutes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_common.schema.fleet import FleetSnapshot

SAMPLES = 60
"""Samples that are kept of each device."""

SAMPLE_S = 1.0
"""Seconds between two samples; snapshots in between change nothing here."""

RATE_WINDOW = 6
"""Rates are taken over so many samples: long enough to be calm, short enough to be now."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of a model that only grow."""

    requests: int = 0
    errors: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one model, or of all.

    Attributes:
        requests: a second.
        errors: a second.
        tokens: that come out, a second.
    """

    requests: float = 0.0
    errors: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        """Both together."""
        return Rate(
            self.requests + other.requests, self.errors + other.errors, self.tokens + other.tokens
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters of all models at one moment.

    Attributes:
        at: Unix seconds.
    """

    at: float
    totals: Mapping[str, Totals]


Series = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The last samples; `after` makes the next one.

    Attributes:
        gateway: when the gateway of these samples started; another one counts from zero.
        samples: of the counters, the oldest first.
        rates: of each model over the window; none before there are two samples.
        utilization: percent of each device, by "node/index".
        memory: share in use of each device, 0 to 1, by "node/index".
    """

    gateway: float = 0.0
    samples: tuple[Sample, ...] = ()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    utilization: Mapping[str, Series] = field(default_factory=dict)
    memory: Mapping[str, Series] = field(default_factory=dict)

    def after(self, snapshot: FleetSnapshot) -> History:
        """This history and one snapshot more."""
        samples = self.samples if snapshot.started_at == self.gateway else ()
        if samples and snapshot.at - samples[-1].at < SAMPLE_S:
            return self
        taken = Sample(
            snapshot.at,
            {m.id: Totals(m.requests, m.errors, m.tokens_out) for m in snapshot.models},
        )
        utilization: dict[str, Series] = {}
        memory: dict[str, Series] = {}
        for node in snapshot.nodes:
            for device in node.devices:
                key = f"{node.name}/{device.index}"
                used = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else None
                utilization[key] = _pushed(self.utilization.get(key, ()), device.utilization_pct)
                memory[key] = _pushed(self.memory.get(key, ()), used)
        samples = (*samples, taken)[-RATE_WINDOW:]
        return History(snapshot.started_at, samples, _rates(samples), utilization, memory)


def _rates(samples: tuple[Sample, ...]) -> dict[str, Rate]:
    if len(samples) < 2:
        return {}
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    found = {}
    for model, now in last.totals.items():
        then = first.totals.get(model, Totals())
        found[model] = Rate(
            max(0, now.requests - then.requests) / seconds,
            max(0, now.errors - then.errors) / seconds,
            max(0, now.tokens_out - then.tokens_out) / seconds,
        )
    return found


def _pushed(series: Series, value: float | None) -> Series:
    return (*series, value)[-SAMPLES:]
