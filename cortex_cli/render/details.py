"""All about one model: what is wanted, what is, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortex_cli.color import Paint
from cortex_cli.output import Kind, Output, document
from cortex_cli.render.fleet import (
    DEVICES,
    INSTANCES,
    device_rows,
    instance_rows,
    state_tone,
)
from cortex_cli.render.table import Column, printable, table
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import FleetSnapshot, ModelView, NodeView
from cortex_common.schema.model_detail import ModelDetail, SizeMeasurement
from cortex_common.schema.operations import PinView
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestView
from cortex_common.units import format_duration, format_mib


@dataclass(frozen=True, slots=True)
class Failure:
    """Why nothing was done; see `CortexError`."""

    code: str
    message: str
    hints: tuple[str, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one thing.

    Attributes:
        name: as it was meant.
        action: the verb, such as "load".
        outcome: done, planned (with --dry-run) or failed.
        result: what the gateway answered: its object for the verb, or for its plan.
        error: where it failed.
    """

    name: str
    action: str
    outcome: str
    result: Any = None
    error: Failure | None = None


def failure(error: CortexError) -> Failure:
    """An error as data."""
    return Failure(error.code, error.message, error.hints, error.details)


RESULTS: Kind[Result] = Kind("ResultList", (), lambda r: r.name, "nothing was done")


REASONS = {
    "only": "it was the only instance that was ready",
    "least-busy": "of the ready instances it was the least busy",
    "context": "it was the least busy of those whose context holds the prompt",
    "session": "the conversation was there before",
    "loaded": "it was loaded for this request, or for others of the same model",
    "retry": "another instance failed before it had answered anything",
}
"""What x-cortex-route says, in words."""


def why_text(request: RequestView, decisions: Sequence[DecisionView]) -> str:
    """The story of a request, a line for each thing that was decided."""
    lines = [f"{request.id} asked for {request.model or 'no model'} and is {_state(request)}"]
    if request.queue_ms:
        lines.append(f"it waited {format_duration(request.queue_ms / 1000)}")
    lines += [_waited(d) for d in decisions]
    if request.instance is not None:
        reason = REASONS.get(request.reason or "", request.reason or "for no reason that is known")
        lines.append(f"it went to {request.instance} on {request.node}: {reason}")
    else:
        lines.append("it went to no instance")
    return "\n".join(map(printable, lines))


def _state(request: RequestView) -> str:
    return request.outcome or request.state.value


def _waited(decision: DecisionView) -> str:
    waited = format_duration(decision.waited_s)
    if decision.instance is None:
        return f"in vain for {waited}: {decision.why}"
    gone = f", after {', '.join(decision.evicted)} had gone" if decision.evicted else ""
    return f"{waited} for {decision.instance}, which was placed there as {decision.why}{gone}"


def node_text(node: NodeView, snapshot: FleetSnapshot, paint: Paint) -> str:
    """For people: facts, devices, instances."""
    seen = format_duration(max(0.0, snapshot.at - node.seen_at)) if node.seen_at else ""
    facts = [
        ("state", paint.tone(node.state.value, state_tone(node.state))),
        ("reason", node.reason or ""),
        ("cordoned", "yes: nothing new is placed on it" if node.cordoned else ""),
        ("last word", f"{seen} ago" if seen else ""),
        ("endpoint", node.endpoint),
        ("host", " ".join(x for x in (node.hostname, node.os, node.kernel) if x)),
        ("driver", node.driver_version or ""),
        ("cuda", node.cuda_version or ""),
        ("neuron", node.neuron_version),
        ("harnesses", ", ".join(node.harnesses)),
        *(("warning", warning) for warning in node.warnings),
    ]
    parts = ["\n".join(f"{name:<10}  {_kept(value)}" for name, value in facts if value)]
    devices = [r for r in device_rows(snapshot) if r.node == node.name]
    instances = [r for r in instance_rows(snapshot) if r.instance.node == node.name]
    if devices:
        parts.append(table(DEVICES.columns, devices, paint=paint))
    if instances:
        parts.append(table(INSTANCES.columns, instances, paint=paint, wide=True))
    return f"{paint.bold(node.name)}\n" + "\n\n".join(parts)


def _kept(value: str) -> str:
    """On one line; colour of our own is left alone."""
    return value if value.startswith("\x1b[") else printable(value)


_MEASURED: Sequence[Column[SizeMeasurement]] = (
    Column("NODE", lambda m: m.node),
    Column("DEVICES", lambda m: f"{m.devices} {m.kind}"),
    Column("EACH", lambda m: format_mib(m.device_mb), right=True),
    Column("LAST", lambda m: format_mib(m.last_mb), right=True),
    Column("LOADED IN", lambda m: format_duration(m.load_s), right=True),
    Column("LOADS", lambda m: str(m.loads), right=True),
    Column("ENGINE", lambda m: m.build),
)


def model_text(
    detail: ModelDetail, view: ModelView | None, snapshot: FleetSnapshot, paint: Paint
) -> str:
    """For people: facts, instances with the reason for their place, measurements."""
    facts = [("harness", detail.harness), ("priority", str(detail.priority or ""))]
    if view is not None:
        facts = [
            ("state", paint.tone(view.state.value, state_tone(view.state))),
            ("aliases", ", ".join(view.aliases)),
            *facts,
            ("context", str(view.context or "")),
            ("requests", f"{view.requests}, {view.errors} failed, {detail.rate:.2f}/s lately"),
            ("now", f"{view.in_flight} active, {view.waiting} waiting"),
            ("error", printable(view.error or "")),
        ]
    facts += [
        (
            "estimate",
            f"{format_mib(detail.vram_mb)} over {detail.min_devices} device(s), by models.toml"
            if detail.vram_mb
            else "",
        ),
        ("load takes", format_duration(detail.load_s) if detail.load_s else ""),
        ("pinned", "; ".join(_pin(p, snapshot.at) for p in detail.pins)),
        ("pinned by profile", ", ".join(view.pinned_on) if view else ""),
    ]
    known = [(k, v) for k, v in facts if v]
    width = max(len(k) for k, _ in known)
    blocks = [
        "\n".join(
            [paint.bold(detail.model), *(f"{paint.dim(k.ljust(width))}  {v}" for k, v in known)]
        )
    ]
    if rows := [r for r in instance_rows(snapshot) if r.instance.model == detail.model]:
        blocks.append(table(INSTANCES.columns[1:], rows, paint=paint, wide=True))
    if detail.measured:
        blocks.append(table(_MEASURED, detail.measured, paint=paint))
    return "\n\n".join(blocks)


def _pin(pin: PinView, now: float) -> str:
    left = f" for {format_duration(max(0.0, pin.until - now))} more" if pin.until else ""
    return f"on {pin.node or 'any node'}{left}"


def model_document(
    detail: ModelDetail, view: ModelView | None, snapshot: FleetSnapshot, form: Output
) -> str:
    """For programs."""
    if form is Output.NAME:
        return detail.model
    instances = [i for i in snapshot.instances() if i.model == detail.model]
    return document("Model", form, model=view, detail=detail, instances=instances)
