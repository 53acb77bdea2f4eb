"""Asks a Prometheus every question of the Grafana dashboard, and draws the answers where its panels lie.

The picture comes from the dashboard's own queries, but this draws it, not Grafana. A panel without data is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import httpx

DASHBOARD = Path(__file__).parents[2] / "config" / "grafana" / "cortex.json"
STEP_S = 5
_VARIABLES = {"$__rate_interval": "20s", "$model": ".*", "$node": ".*"}

_FONT = 'font-family="DejaVu Sans, sans-serif" font-size="11"'
_COLUMN, _ROW, _GAP = 60, 30, 6
_COLOURS = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#5195ce", "#ba43a9", "#a79bff",
)  # fmt: skip
_UNITS = {"s": "s", "bytes": "B", "reqps": "/s", "percentunit": "%", "celsius": "°C", "watt": "W"}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its name and (Unix seconds, value) without what is not a number."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with its answers; a row of the dashboard has none. Its place is in Grafana's grid of 24 columns."""

    kind: str
    title: str
    unit: str
    at: Mapping[str, int]
    lines: Sequence[Line] = ()

    @property
    def empty(self) -> bool:
        """Whether it would say "No data"."""
        return self.kind != "row" and not any(line.points for line in self.lines)


def panels(prometheus: str, start: float, end: float) -> list[Panel]:
    """All panels of the dashboard with what a Prometheus answers for this time."""
    with httpx.Client(base_url=prometheus, timeout=30) as http:
        return [
            Panel(
                kind=told["type"],
                title=told["title"],
                unit=told.get("fieldConfig", {}).get("defaults", {}).get("unit", "none"),
                at=told["gridPos"],
                lines=[
                    line
                    for target in told.get("targets", ())
                    for line in _asked(http, target, start, end)
                ],
            )
            for told in json.loads(DASHBOARD.read_text())["panels"]
        ]


def _asked(http: httpx.Client, target: Mapping[str, Any], start: float, end: float) -> list[Line]:
    query = target["expr"]
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    asked = {"query": query, "start": str(start), "end": str(end), "step": str(STEP_S)}
    answer = http.get("/api/v1/query_range", params=asked).json()
    assert answer["status"] == "success", (query, answer)
    return [
        Line(_legend(target["legendFormat"], found["metric"]), list(_numbers(found["values"])))
        for found in answer["data"]["result"]
    ]


def _numbers(values: Sequence[tuple[float, str]]) -> Iterator[tuple[float, float]]:
    for at, text in values:
        if math.isfinite(value := float(text)):
            yield at, value


def _legend(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), form)


def picture(drawn: Sequence[Panel], start: float, end: float) -> str:
    """The dashboard as SVG."""
    width = 24 * _COLUMN
    height = max(p.at["y"] + p.at["h"] for p in drawn) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        f'<rect width="{width}" height="{height}" fill="#111217"/>',
    ]
    for panel in drawn:
        x, y = panel.at["x"] * _COLUMN, panel.at["y"] * _ROW
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel(panel, start, end)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, start: float, end: float) -> Iterator[str]:
    width, height = panel.at["w"] * _COLUMN - _GAP, panel.at["h"] * _ROW - _GAP
    if panel.kind == "row":
        yield _text(4, 20, panel.title, size=14, weight="bold")
        return
    yield f'<rect width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#2c3035"/>'
    yield _text(8, 16, panel.title, weight="bold")
    shown = [line for line in panel.lines if line.points]
    if panel.kind == "stat":
        told = [_amount(line.points[-1][1], panel.unit) for line in shown]
        yield _text(width / 2, height / 2 + 18, " / ".join(told), "#7eb26d", 30, anchor="middle")
        return
    yield from _curves(shown, panel.unit, width, height, start, end)


def _curves(
    lines: Sequence[Line], unit: str, width: int, height: int, start: float, end: float
) -> Iterator[str]:
    left, top, right = 52, 26, width - 10
    bottom = height - 20 - 14 * min(4, math.ceil(len(lines) / 2))
    low = min([0.0, *(v for line in lines for _, v in line.points)])
    high = max([low, *(v for line in lines for _, v in line.points)]) or 1.0
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        yield f'<path d="M{left} {y:.1f}H{right}" stroke="#2c3035"/>'
        yield _text(
            left - 5, y + 4, _amount(low + (high - low) * share, unit), "#9aa0a6", anchor="end"
        )

    def place(at: float, value: float) -> str:
        x = left + (right - left) * (at - start) / (end - start)
        return f"{x:.1f} {bottom - (bottom - top) * (value - low) / (high - low):.1f}"

    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = ""
        before = -math.inf
        for at, value in line.points:
            path += f"{'M' if at - before > 1.5 * STEP_S else 'L'}{place(at, value)}"
            before = at
        yield (
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" '
            'stroke-linecap="round"/>'
        )
        if number < 8:
            x, y = left - 40 + (number % 2) * (width / 2), bottom + 18 + number // 2 * 14
            yield f'<rect x="{x}" y="{y - 5}" width="10" height="3" fill="{colour}"/>'
            yield _text(x + 14, y, f"{line.name}  {_amount(line.points[-1][1], unit)}", "#ccccdc")


def _text(
    x: float,
    y: float,
    text: str,
    colour: str = "#d8d9da",
    size: int = 11,
    *,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}" '
        f'font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _amount(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{_UNITS.get(unit, '')}".strip()
    return f"0 {_UNITS.get(unit, '')}".strip()
