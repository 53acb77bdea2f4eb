"""Measurements as figures: percentiles, rates, comparison of two runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cortex_cli.color import Paint, Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column, table
from cortex_common.schema.base import WireModel


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        first_s: seconds to the first token; None when there was none.
        gaps_s: seconds between one chunk and the next.
        total_s: seconds to the end.
        tokens: of the answer, as the engine counted them, else chunks.
        error: code of the error that it ended with.
    """

    first_s: float | None
    total_s: float
    tokens: int = 0
    gaps_s: tuple[float, ...] = field(default=())
    error: str | None = None


class Percentiles(WireModel):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class Level(WireModel):
    """The figures of one concurrency.

    Attributes:
        errors: count of each error code.
        seconds: from the first request's start to the last one's end.
        tokens_per_s: of all requests together.
        first_token, gap, total: percentiles in milliseconds of those that succeeded.
    """

    concurrency: int
    requests: int
    errors: dict[str, int] = {}  # noqa: RUF012 - pydantic copies defaults
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    first_token: Percentiles | None = None
    gap: Percentiles | None = None
    total: Percentiles | None = None


class BenchRun(WireModel):
    """A run, as it is saved.

    Attributes:
        at: when it began.
        cold_load_s: seconds from asking for the unloaded model to its first token, where that was measured.
    """

    model: str
    gateway: str
    version: str
    at: datetime
    prompt_tokens: int
    output_tokens: int
    cold_load_s: float | None = None
    levels: tuple[Level, ...] = ()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, between neighbours in proportion.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """The three that matter, in milliseconds; None of nothing."""
    if not seconds:
        return None
    p50, p95, p99 = (round(1000 * percentile(seconds, share), 3) for share in (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def level(concurrency: int, samples: Sequence[Sample], seconds: float) -> Level:
    """The figures of one concurrency.

    Args:
        concurrency: requests under way at a time.
        samples: all of them.
        seconds: that they took together.
    """
    good = [s for s in samples if s.error is None]
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error is not None:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    return Level(
        concurrency=concurrency,
        requests=len(samples),
        errors=errors,
        seconds=round(seconds, 3),
        requests_per_s=round(len(good) / seconds, 3) if seconds else 0.0,
        tokens_per_s=round(sum(s.tokens for s in good) / seconds, 3) if seconds else 0.0,
        first_token=percentiles([s.first_s for s in good if s.first_s is not None]),
        gap=percentiles([g for s in good for g in s.gaps_s]),
        total=percentiles([s.total_s for s in good]),
    )


def _ms(found: Percentiles | None, name: str) -> str:
    return "–" if found is None else f"{getattr(found, name):.1f}"


LEVELS: Kind[Level] = Kind(
    kind="LevelList",
    columns=(
        Column("CONC", lambda x: str(x.concurrency), right=True),
        Column("REQUESTS", lambda x: str(x.requests), right=True),
        Column(
            "ERRORS",
            lambda x: " ".join(f"{n}× {code}" for code, n in x.errors.items()) or "0",
            right=True,
            tone=lambda x: Tone.BAD if x.errors else None,
        ),
        Column("REQ/S", lambda x: f"{x.requests_per_s:.2f}", right=True),
        Column("TOK/S", lambda x: f"{x.tokens_per_s:.1f}", right=True),
        Column("TTFT P50", lambda x: _ms(x.first_token, "p50"), right=True),
        Column("P95", lambda x: _ms(x.first_token, "p95"), right=True),
        Column("P99", lambda x: _ms(x.first_token, "p99"), right=True),
        Column("GAP P50", lambda x: _ms(x.gap, "p50"), right=True),
        Column("P95", lambda x: _ms(x.gap, "p95"), right=True),
        Column("TOTAL P50", lambda x: _ms(x.total, "p50"), right=True),
        Column("P95", lambda x: _ms(x.total, "p95"), right=True),
    ),
    name=lambda x: str(x.concurrency),
    nothing="nothing was measured",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two runs.

    Attributes:
        change: share by which it grew; None where the first was nothing.
        better: growing is good (rates) or bad (times).
    """

    concurrency: int
    figure: str
    before: float
    after: float
    better: bool

    @property
    def change(self) -> float | None:
        """The share by which the figure grew."""
        return (self.after - self.before) / self.before if self.before else None


def compare(before: BenchRun, after: BenchRun) -> list[Difference]:
    """The figures of those concurrencies that both runs have."""
    earlier = {x.concurrency: x for x in before.levels}
    found = []
    for now in after.levels:
        then = earlier.get(now.concurrency)
        if then is None:
            continue
        found.append(_rate(now.concurrency, "req/s", then.requests_per_s, now.requests_per_s))
        found.append(_rate(now.concurrency, "tok/s", then.tokens_per_s, now.tokens_per_s))
        for name, old, new in (
            ("ttft", then.first_token, now.first_token),
            ("gap", then.gap, now.gap),
            ("total", then.total, now.total),
        ):
            if old is not None and new is not None:
                found += [
                    Difference(
                        now.concurrency, f"{name} {p} ms", getattr(old, p), getattr(new, p), False
                    )
                    for p in ("p50", "p95")
                ]
    return found


def _rate(concurrency: int, name: str, before: float, after: float) -> Difference:
    return Difference(concurrency, name, before, after, better=True)


_NOISE = 0.05
"""Changes below it say nothing."""

_MANIFOLD = 9.0
"""From ten times as much on, percents can't be read."""


def _tone(difference: Difference) -> Tone | None:
    change = difference.change
    if change is None or abs(change) < _NOISE:
        return None
    return Tone.GOOD if (change > 0) == difference.better else Tone.BAD


def _change(difference: Difference) -> str:
    change = difference.change
    if change is None:
        return "–"
    return f"{100 * change:+.1f}%" if change < _MANIFOLD else f"{change + 1:.0f}×"


_DIFFERENCES: Sequence[Column[Difference]] = (
    Column("CONC", lambda d: str(d.concurrency), right=True),
    Column("FIGURE", lambda d: d.figure),
    Column("BEFORE", lambda d: f"{d.before:.2f}", right=True),
    Column("AFTER", lambda d: f"{d.after:.2f}", right=True),
    Column("CHANGE", _change, right=True, tone=_tone),
)


def differences_text(found: Sequence[Difference], paint: Paint) -> str:
    """A table of the differences."""
    return table(_DIFFERENCES, found, paint=paint)
