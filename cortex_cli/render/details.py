"""All about one model: what is wanted, what is, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.color import Paint
from cortex_cli.output import Output, document
from cortex_cli.render.fleet import INSTANCES, instance_rows, state_tone
from cortex_cli.render.table import Column, printable, table
from cortex_common.schema.fleet import FleetSnapshot, ModelView
from cortex_common.schema.operations import MeasuredSize, ModelDetail, PinView
from cortex_common.units import show_duration, show_mib

_MEASURED: Sequence[Column[MeasuredSize]] = (
    Column("NODE", lambda m: m.node),
    Column("DEVICES", lambda m: f"{m.devices} {m.kind}"),
    Column("EACH", lambda m: show_mib(m.device_mb), right=True),
    Column("LAST", lambda m: show_mib(m.last_mb), right=True),
    Column("LOADED IN", lambda m: show_duration(m.load_s), right=True),
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
            f"{show_mib(detail.vram_mb)} over {detail.min_devices} device(s), by models.toml"
            if detail.vram_mb
            else "",
        ),
        ("load takes", show_duration(detail.load_s) if detail.load_s else ""),
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
    left = f" for {show_duration(max(0.0, pin.until - now))} more" if pin.until else ""
    return f"on {pin.node or 'any node'}{left}"


def model_document(
    detail: ModelDetail, view: ModelView | None, snapshot: FleetSnapshot, form: Output
) -> str:
    """For programs."""
    if form is Output.NAME:
        return detail.model
    instances = [i for i in snapshot.instances() if i.model == detail.model]
    return document("Model", form, model=view, detail=detail, instances=instances)
