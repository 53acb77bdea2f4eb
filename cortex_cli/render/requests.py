"""Requests as rows."""

from __future__ import annotations

from datetime import datetime

from cortex_cli.color import Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column
from cortex_common.schema.requests import RequestList, RequestState, RequestView


def chosen_requests(found: RequestList, model: str = "", slow_ms: float = 0.0) -> list[RequestView]:
    """Those under way, then those that ended; of a model, and that took as long, if so wished."""
    return [
        r
        for r in (*found.active, *found.recent)
        if model in (r.model or "") and r.total_ms >= slow_ms
    ]


def milliseconds(value: float | None) -> str:
    """A time as "84ms" or "12.3s"; "–" where there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}ms" if value < 1000 else f"{value / 1000:.1f}s"


def speed(request: RequestView) -> str:
    """Tokens a second of the answer."""
    found = request.tokens_per_s
    return "–" if found is None else f"{found:.1f}"


def started(request: RequestView) -> str:
    """The local time of day at which it came."""
    return datetime.fromtimestamp(request.started).astimezone().strftime("%H:%M:%S")


def state_text(request: RequestView) -> str:
    """How far it is, or how it ended."""
    return request.outcome or request.state.value


def request_tone(request: RequestView) -> Tone | None:
    """The colour of that."""
    if request.outcome is None:
        return Tone.GOOD if request.state is RequestState.DECODE else Tone.WARN
    return Tone.DIM if request.outcome == "ok" else Tone.BAD


REQUESTS: Kind[RequestView] = Kind(
    kind="RequestList",
    columns=(
        Column("ID", lambda r: r.id),
        Column("STARTED", started),
        Column("STATE", state_text, tone=request_tone),
        Column("KEY", lambda r: r.key or ""),
        Column("MODEL", lambda r: r.model or ""),
        Column("NODE", lambda r: r.node or ""),
        Column("QUEUE", lambda r: milliseconds(r.queue_ms), right=True),
        Column("TTFT", lambda r: milliseconds(r.ttft_ms), right=True),
        Column("TOTAL", lambda r: milliseconds(r.total_ms), right=True),
        Column("IN", lambda r: str(r.tokens_in), right=True),
        Column("OUT", lambda r: str(r.tokens_out), right=True),
        Column("TOK/S", speed, right=True),
        Column("ROUTE", lambda r: r.route, wide=True),
        Column("INSTANCE", lambda r: r.instance or "", wide=True),
        Column("WHY THERE", lambda r: r.reason or "", wide=True),
    ),
    name=lambda r: r.id,
    nothing="no requests under way, and none lately",
)
