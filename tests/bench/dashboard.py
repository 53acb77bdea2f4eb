"""Runs all queries of the Grafana dashboard against Prometheus, and renders the panels as SVG.

The data comes from the dashboard's own queries, but the rendering is done here, not by Grafana.
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
_COLORS = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#5195ce", "#ba43a9", "#a79bff",
)  # fmt: skip
_UNITS = {"s": "s", "bytes": "B", "reqps": "/s", "percentunit": "%", "celsius": "°C", "watt": "W"}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its name and points (Unix seconds, value), without values that are not finite."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with its series, or a row heading without any. Its position refers to Grafana's grid of 24 columns."""

    kind: str
    title: str
    unit: str
    at: Mapping[str, int]
    lines: Sequence[Line] = ()

    @property
    def empty(self) -> bool:
        """Whether Grafana would show "No data"."""
        return self.kind != "row" and not any(line.points for line in self.lines)


def query_panels(prometheus: str, start: float, end: float) -> list[Panel]:
    """Return all panels of the dashboard with their data from Prometheus for a time range."""
    with httpx.Client(base_url=prometheus, timeout=30) as http:
        return [
            Panel(
                kind=panel["type"],
                title=panel["title"],
                unit=panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none"),
                at=panel["gridPos"],
                lines=[
                    line
                    for target in panel.get("targets", ())
                    for line in _query(http, target, start, end)
                ],
            )
            for panel in json.loads(DASHBOARD.read_text())["panels"]
        ]


def _query(http: httpx.Client, target: Mapping[str, Any], start: float, end: float) -> list[Line]:
    query = target["expr"]
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    params = {"query": query, "start": str(start), "end": str(end), "step": str(STEP_S)}
    response = http.get("/api/v1/query_range", params=params).json()
    assert response["status"] == "success", (query, response)
    return [
        Line(_legend(target["legendFormat"], series["metric"]), list(_finite(series["values"])))
        for series in response["data"]["result"]
    ]


def _finite(values: Sequence[tuple[float, str]]) -> Iterator[tuple[float, float]]:
    for at, text in values:
        if math.isfinite(value := float(text)):
            yield at, value


def _legend(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), form)


def render(panels: Sequence[Panel], start: float, end: float) -> str:
    """Render the dashboard as SVG."""
    width = 24 * _COLUMN
    height = max(p.at["y"] + p.at["h"] for p in panels) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        f'<rect width="{width}" height="{height}" fill="#111217"/>',
    ]
    for panel in panels:
        x, y = panel.at["x"] * _COLUMN, panel.at["y"] * _ROW
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _render_panel(panel, start, end)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _render_panel(panel: Panel, start: float, end: float) -> Iterator[str]:
    width, height = panel.at["w"] * _COLUMN - _GAP, panel.at["h"] * _ROW - _GAP
    if panel.kind == "row":
        yield _text(4, 20, panel.title, size=14, weight="bold")
        return
    yield f'<rect width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#2c3035"/>'
    yield _text(8, 16, panel.title, weight="bold")
    shown = [line for line in panel.lines if line.points]
    if panel.kind == "stat":
        values = [_format_value(line.points[-1][1], panel.unit) for line in shown]
        yield _text(width / 2, height / 2 + 18, " / ".join(values), "#7eb26d", 30, anchor="middle")
        return
    yield from _render_lines(shown, panel.unit, width, height, start, end)


def _render_lines(
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
            left - 5,
            y + 4,
            _format_value(low + (high - low) * share, unit),
            "#9aa0a6",
            anchor="end",
        )

    def position(at: float, value: float) -> str:
        x = left + (right - left) * (at - start) / (end - start)
        return f"{x:.1f} {bottom - (bottom - top) * (value - low) / (high - low):.1f}"

    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        path = ""
        previous = -math.inf
        for at, value in line.points:
            path += f"{'M' if at - previous > 1.5 * STEP_S else 'L'}{position(at, value)}"
            previous = at
        yield (
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5" '
            'stroke-linecap="round"/>'
        )
        if number < 8:
            x, y = left - 40 + (number % 2) * (width / 2), bottom + 18 + number // 2 * 14
            yield f'<rect x="{x}" y="{y - 5}" width="10" height="3" fill="{color}"/>'
            yield _text(
                x + 14, y, f"{line.name}  {_format_value(line.points[-1][1], unit)}", "#ccccdc"
            )


def _text(
    x: float,
    y: float,
    text: str,
    color: str = "#d8d9da",
    size: int = 11,
    *,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" font-size="{size}" '
        f'font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _format_value(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{_UNITS.get(unit, '')}".strip()
    return f"0 {_UNITS.get(unit, '')}".strip()
