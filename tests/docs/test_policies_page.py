"""The included fleets and traces produce the figures on the page about eviction policies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from cortex_common.config.loader import load
from cortex_common.units import format_duration
from cortex_server.placement.policy import Policy
from cortex_server.simulate.fleet import SimulatedFleet
from cortex_server.simulate.report import bound, compare_policies
from cortex_server.simulate.trace import Request, Traffic, generate, read

ROOT = Path(__file__).parents[2]
INCLUDED = ROOT / "config" / "simulate"
MADE_BY = {
    "workstation": Traffic(2000, zipf=1.3, burst=0.4, day=0.9),
    "team": Traffic(3000, zipf=1.0, burst=0.5, day=0.8),
    "cluster": Traffic(6000, zipf=1.0, burst=0.4, day=0.7),
}


@cache
def included(name: str) -> tuple[SimulatedFleet, list[Request]]:
    """Return an included fleet and its trace."""
    lines = (INCLUDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return load(SimulatedFleet, INCLUDED / f"{name}.toml", {}).value, list(read(lines, name))


def row(name: str) -> list[str]:
    """Return the row of a trace in the table of the page."""
    page = (ROOT / "docs" / "concepts" / "policies.md").read_text(encoding="utf-8")
    line = next(x for x in page.splitlines() if x.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("name", MADE_BY)
def test_an_included_trace_is_what_the_generator_makes(name: str):
    """The files match the generator's output, and the page has their bound."""
    fleet, trace = included(name)
    made = generate(MADE_BY[name], [m.id for m in fleet.models])
    assert [(round(r.at, 3), r.model, r.tokens) for r in made] == [
        (r.at, r.model, r.tokens) for r in trace
    ]
    assert row(name)[4] == format_duration(bound(fleet, trace))


def test_the_page_has_the_figures_of_lru_and_cost():
    """Simulating the smallest trace gives the figures on the page; the other traces take too long for a test."""
    report = compare_policies(*included("workstation"), ["lru", "cost"], Policy())
    lru, cost = (r.cold_start_s for r in report.rows)
    printed = row("workstation")
    assert (printed[0], printed[2]) == (format_duration(lru), format_duration(cost))
    assert printed[5:] == [
        f"{1 - cost / lru:.0%}",
        f"{lru / report.bound_s:.1f}",
        f"{cost / report.bound_s:.1f}",
    ]
    assert all(r.refused == 0 for r in report.rows)
