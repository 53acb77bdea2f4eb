"""Details of one model, one node or one request, and the results of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortex_cli.color import Colors
from cortex_cli.render.fleet import (
    DEVICES,
    INSTANCES,
    device_rows,
    instance_rows,
    state_tone,
)
from cortex_cli.render.output_format import ListKind, OutputFormat, format_document
from cortex_cli.render.table import Column, table
from cortex_cli.terminal import neutralize_except_colors, neutralize_line
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import FleetSnapshot, ModelView, NodeView
from cortex_common.schema.model_detail import ModelDetail, SizeMeasurement
from cortex_common.schema.operations import PinView
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestView
from cortex_common.units import format_duration, format_mib


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as data; see `CortexError`."""

    code: str
    message: str
    hints: tuple[str, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an action on one name.

    Attributes:
        name: name that the action was applied to.
        action: name of the action, such as "load".
        outcome: "done", "planned" (with --dry-run) or "failed".
        result: response of the gateway, to the action or to its plan.
        error: the error, if the action failed.
    """

    name: str
    action: str
    outcome: str
    result: Any = None
    error: Failure | None = None


def to_failure(error: CortexError) -> Failure:
    """Convert an error to data."""
    return Failure(error.code, error.message, error.hints, error.details)


RESULTS: ListKind[Result] = ListKind("ResultList", (), lambda r: r.name, "no results")


ROUTE_REASONS = {
    "only": "it was the only ready instance",
    "least-busy": "it was the least busy ready instance",
    "context": "it was the least busy instance whose context fits the prompt",
    "session": "it served earlier requests of the session",
    "loaded": "it was loaded for this request, or for others of the same model",
    "retry": "another instance failed before sending a response",
}
"""Descriptions of the values of x-cortex-route."""


def why_text(request: RequestView, decisions: Sequence[DecisionView]) -> str:
    """Explain the routing of a request, one line per decision."""
    lines = [f"{request.id} for {request.model or 'no model'}: {_state(request)}"]
    if request.queue_ms:
        lines.append(f"waited {format_duration(request.queue_ms / 1000)}")
    lines += [_decision_line(d) for d in decisions]
    if request.instance is not None:
        reason = ROUTE_REASONS.get(request.reason or "", request.reason or "unknown reason")
        lines.append(f"sent to {request.instance} on {request.node}: {reason}")
    else:
        lines.append("not sent to an instance")
    return "\n".join(map(neutralize_line, lines))


def _state(request: RequestView) -> str:
    return request.outcome or request.state.value


def _decision_line(decision: DecisionView) -> str:
    waited = format_duration(decision.waited_s)
    if decision.instance is None:
        return f"waited {waited} without success: {decision.reason}"
    evicted = f", after evicting {', '.join(decision.evicted)}" if decision.evicted else ""
    return (
        f"waited {waited} for {decision.instance}, placed there because {decision.reason}{evicted}"
    )


def node_text(node: NodeView, snapshot: FleetSnapshot, colors: Colors) -> str:
    """Return the details of a node: facts, devices and instances."""
    seen = format_duration(max(0.0, snapshot.at - node.seen_at)) if node.seen_at else ""
    facts = [
        ("state", colors.tone(node.state.value, state_tone(node.state))),
        ("reason", node.reason or ""),
        ("cordoned", "yes: no new instances are placed on it" if node.cordoned else ""),
        ("last seen", f"{seen} ago" if seen else ""),
        ("endpoint", node.endpoint),
        ("host", " ".join(x for x in (node.hostname, node.os, node.kernel) if x)),
        ("driver", node.driver_version or ""),
        ("cuda", node.cuda_version or ""),
        ("neuron", node.neuron_version),
        ("harnesses", ", ".join(node.harnesses)),
        *(("warning", warning) for warning in node.warnings),
    ]
    parts = ["\n".join(f"{name:<10}  {_neutral_fact(value)}" for name, value in facts if value)]
    devices = [r for r in device_rows(snapshot) if r.node == node.name]
    instances = [r for r in instance_rows(snapshot) if r.instance.node == node.name]
    if devices:
        parts.append(table(DEVICES.columns, devices, colors=colors))
    if instances:
        parts.append(table(INSTANCES.columns, instances, colors=colors, wide=True))
    return f"{colors.bold(node.name)}\n" + "\n\n".join(parts)


def _neutral_fact(value: str) -> str:
    """Return the value on one line; some are colored here."""
    return neutralize_except_colors(value).replace("\n", " ").strip()


_MEASURED: Sequence[Column[SizeMeasurement]] = (
    Column("NODE", lambda m: m.node),
    Column("DEVICES", lambda m: f"{m.devices} {m.kind}"),
    Column("PER DEVICE", lambda m: format_mib(m.device_mb), right=True),
    Column("LAST", lambda m: format_mib(m.last_mb), right=True),
    Column("LOAD TIME", lambda m: format_duration(m.load_s), right=True),
    Column("LOADS", lambda m: str(m.loads), right=True),
    Column("ENGINE", lambda m: m.build),
)


def model_text(
    detail: ModelDetail, view: ModelView | None, snapshot: FleetSnapshot, colors: Colors
) -> str:
    """Return the details of a model: facts, instances with the reason for their placement, and measurements."""
    facts = [("harness", detail.harness), ("priority", str(detail.priority or ""))]
    if view is not None:
        facts = [
            ("state", colors.tone(view.state.value, state_tone(view.state))),
            ("aliases", ", ".join(view.aliases)),
            *facts,
            ("context", str(view.context or "")),
            ("requests", f"{view.requests}, {view.errors} failed, {detail.rate:.2f}/s recently"),
            ("now", f"{view.in_flight} active, {view.waiting} waiting"),
            ("error", neutralize_line(view.error or "")),
        ]
    facts += [
        (
            "estimate",
            f"{format_mib(detail.vram_mb)} over {detail.min_devices} device(s), from models.toml"
            if detail.vram_mb
            else "",
        ),
        ("load time", format_duration(detail.load_s) if detail.load_s else ""),
        ("pinned", "; ".join(_pin(p, snapshot.at) for p in detail.pins)),
        ("pinned by config", ", ".join(view.pinned_on) if view else ""),
    ]
    present = [(k, v) for k, v in facts if v]
    width = max(len(k) for k, _ in present)
    blocks = [
        "\n".join(
            [colors.bold(detail.model), *(f"{colors.dim(k.ljust(width))}  {v}" for k, v in present)]
        )
    ]
    if rows := [r for r in instance_rows(snapshot) if r.instance.model == detail.model]:
        blocks.append(table(INSTANCES.columns[1:], rows, colors=colors, wide=True))
    if detail.measured:
        blocks.append(table(_MEASURED, detail.measured, colors=colors))
    return "\n\n".join(blocks)


def _pin(pin: PinView, now: float) -> str:
    remaining = f" for another {format_duration(max(0.0, pin.until - now))}" if pin.until else ""
    return f"on {pin.node or 'any node'}{remaining}"


def model_document(
    detail: ModelDetail, view: ModelView | None, snapshot: FleetSnapshot, output: OutputFormat
) -> str:
    """Return the details of a model in a structured format."""
    if output is OutputFormat.NAME:
        return detail.model
    instances = [i for i in snapshot.instances() if i.model == detail.model]
    return format_document("Model", output, model=view, detail=detail, instances=instances)
