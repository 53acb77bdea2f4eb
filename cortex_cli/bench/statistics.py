"""Statistics of measurements: percentiles, rates, and the comparison of two runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cortex_cli.color import Colors, Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column, table
from cortex_common.schema.base import WireModel


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurements of one request.

    Attributes:
        first_s: seconds to the first token; None if there was none.
        total_s: seconds to the end.
        tokens: number of output tokens, or of chunks if the engine reports no usage.
        gaps_s: seconds between consecutive chunks.
        error: code of the error, if it failed.
    """

    first_s: float | None
    total_s: float
    tokens: int = 0
    gaps_s: tuple[float, ...] = field(default=())
    error: str | None = None


class Percentiles(WireModel):
    """Percentiles in milliseconds."""

    p50: float
    p95: float
    p99: float


class Level(WireModel):
    """Statistics at one concurrency.

    Attributes:
        errors: number of errors by code.
        seconds: time from the start of the first request to the end of the last.
        tokens_per_s: output tokens per second over all requests.
        first_token: percentiles of the time to the first token, over successful requests.
        gap: percentiles of the time between chunks, likewise.
        total: percentiles of the total time, likewise.
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
    """Results of a run, as saved by --save.

    Attributes:
        at: start of the run.
        cold_load_s: seconds from a request for the unloaded model to its first token, if measured.
    """

    model: str
    gateway: str
    version: str
    at: datetime
    prompt_tokens: int
    output_tokens: int
    cold_load_s: float | None = None
    levels: tuple[Level, ...] = ()


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile, linearly interpolated between neighbouring values.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """Return the percentiles of times in seconds; None if there are none."""
    if not seconds:
        return None
    p50, p95, p99 = (
        round(1000 * percentile(seconds, fraction), 3) for fraction in (0.5, 0.95, 0.99)
    )
    return Percentiles(p50=p50, p95=p95, p99=p99)


def summarize_level(concurrency: int, samples: Sequence[Sample], seconds: float) -> Level:
    """Compute the statistics at one concurrency.

    Args:
        concurrency: number of concurrent requests.
        samples: measurements of all requests.
        seconds: total time.
    """
    succeeded = [s for s in samples if s.error is None]
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error is not None:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    return Level(
        concurrency=concurrency,
        requests=len(samples),
        errors=errors,
        seconds=round(seconds, 3),
        requests_per_s=round(len(succeeded) / seconds, 3) if seconds else 0.0,
        tokens_per_s=round(sum(s.tokens for s in succeeded) / seconds, 3) if seconds else 0.0,
        first_token=percentiles([s.first_s for s in succeeded if s.first_s is not None]),
        gap=percentiles([g for s in succeeded for g in s.gaps_s]),
        total=percentiles([s.total_s for s in succeeded]),
    )


def _ms(values: Percentiles | None, name: str) -> str:
    return "–" if values is None else f"{getattr(values, name):.1f}"


LEVELS: ListKind[Level] = ListKind(
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
    empty_text="no measurements",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs.

    Attributes:
        metric: name of the metric.
        before: value in the first run.
        after: value in the second run.
        higher_is_better: True for rates, False for times.
    """

    concurrency: int
    metric: str
    before: float
    after: float
    higher_is_better: bool

    @property
    def change(self) -> float | None:
        """Relative change; None if the first value is 0."""
        return (self.after - self.before) / self.before if self.before else None


def compare_runs(before: BenchRun, after: BenchRun) -> list[Difference]:
    """Return the differences at the concurrencies that both runs measured."""
    previous = {x.concurrency: x for x in before.levels}
    differences = []
    for now in after.levels:
        then = previous.get(now.concurrency)
        if then is None:
            continue
        differences.append(_rate(now.concurrency, "req/s", then.requests_per_s, now.requests_per_s))
        differences.append(_rate(now.concurrency, "tok/s", then.tokens_per_s, now.tokens_per_s))
        for name, old, new in (
            ("ttft", then.first_token, now.first_token),
            ("gap", then.gap, now.gap),
            ("total", then.total, now.total),
        ):
            if old is not None and new is not None:
                differences += [
                    Difference(
                        now.concurrency, f"{name} {p} ms", getattr(old, p), getattr(new, p), False
                    )
                    for p in ("p50", "p95")
                ]
    return differences


def _rate(concurrency: int, name: str, before: float, after: float) -> Difference:
    return Difference(concurrency, name, before, after, higher_is_better=True)


_NOISE = 0.05
"""Smaller relative changes are not significant."""

_MAX_PERCENT_CHANGE = 9.0
"""Larger relative changes are shown as a factor."""


def _tone(difference: Difference) -> Tone | None:
    change = difference.change
    if change is None or abs(change) < _NOISE:
        return None
    return Tone.GOOD if (change > 0) == difference.higher_is_better else Tone.BAD


def _change(difference: Difference) -> str:
    change = difference.change
    if change is None:
        return "–"
    return f"{100 * change:+.1f}%" if change < _MAX_PERCENT_CHANGE else f"{change + 1:.0f}×"


_DIFFERENCES: Sequence[Column[Difference]] = (
    Column("CONC", lambda d: str(d.concurrency), right=True),
    Column("METRIC", lambda d: d.metric),
    Column("BEFORE", lambda d: f"{d.before:.2f}", right=True),
    Column("AFTER", lambda d: f"{d.after:.2f}", right=True),
    Column("CHANGE", _change, right=True, tone=_tone),
)


def format_differences(differences: Sequence[Difference], colors: Colors) -> str:
    """Return a table of differences."""
    return table(_DIFFERENCES, differences, colors=colors)
