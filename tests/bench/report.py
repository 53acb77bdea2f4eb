"""Formats the results of a benchmark as a table."""

from __future__ import annotations

from typing import Any

from tests.bench.dataplane import median

COLUMNS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("CPU us/request, 32 conns", "ns32", ("cpu_us_per_req",), "{:,.0f}"),
    ("256 conns", "ns256", ("cpu_us_per_req",), "{:,.0f}"),
    ("CPU us/SSE event, 50 streams", "s50", ("cpu_us_per_event",), "{:,.1f}"),
    ("500 streams", "s500", ("cpu_us_per_event",), "{:,.1f}"),
    ("TTFT p99 ms, 500 streams", "s500", ("ttft", "p99"), "{:,.1f}"),
    ("saturated events/s", "sat", ("eps",), "{:,.0f}"),
)


def table(report: dict[str, Any]) -> str:
    """Return a Markdown table: a row per candidate, medians over the rounds, gateway + relay where there is one."""
    heads = ["gateway", *(title for title, *_ in COLUMNS)]
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for name, scenarios in report["results"].items():
        cells = [f"{name} {report['versions'].get(name, '')}".strip()]
        for _, scenario, path, shape in COLUMNS:
            runs = scenarios.get(scenario)
            cells.append(_cell(runs, path, shape) if runs else "–")
        rows.append(f"| {' | '.join(cells)} |")
    rows.append(f"\n{report['machine']}; medians of interleaved rounds.")
    return "\n".join(rows)


_RELAY = {"cpu_us_per_req": "relay_us_per_req", "cpu_us_per_event": "relay_us_per_event"}


def _cell(runs: list[dict[str, Any]], path: tuple[str, ...], shape: str) -> str:
    value = median(runs, *path)
    if path == ("ttft", "p99"):
        value /= 1000
    text = shape.format(value)
    relay = _RELAY.get(path[0], "")
    if relay in runs[0]:
        text += " + " + shape.format(median(runs, relay))
    failed = sum(r["err"] + r["bad"] + r["non200"] for r in runs)
    return text + (f" ({failed} failed)" if failed else "")
