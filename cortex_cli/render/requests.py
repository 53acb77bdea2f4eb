"""Columns of the list of requests."""

from __future__ import annotations

from datetime import datetime

from cortex_cli.color import Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column
from cortex_common.schema.requests import RequestList, RequestState, RequestView


def filter_requests(
    requests: RequestList, model: str = "", min_ms: float = 0.0
) -> list[RequestView]:
    """Return requests in flight, then finished ones.

    Args:
        requests: the requests.
        model: substring of the model's name.
        min_ms: minimum total milliseconds.
    """
    return [
        r
        for r in (*requests.active, *requests.recent)
        if model in (r.model or "") and r.total_ms >= min_ms
    ]


def milliseconds(value: float | None) -> str:
    """Format milliseconds as "84ms" or "12.3s"; "–" for None."""
    if value is None:
        return "–"
    return f"{value:.0f}ms" if value < 1000 else f"{value / 1000:.1f}s"


def speed(request: RequestView) -> str:
    """Format the output tokens per second."""
    rate = request.tokens_per_s
    return "–" if rate is None else f"{rate:.1f}"


def started(request: RequestView) -> str:
    """Format the local time of day at which the request started."""
    return datetime.fromtimestamp(request.started).astimezone().strftime("%H:%M:%S")


def state_text(request: RequestView) -> str:
    """Return the outcome of a finished request, or its state."""
    return request.outcome or request.state.value


def request_tone(request: RequestView) -> Tone | None:
    """Return the color of the state."""
    if request.outcome is None:
        return Tone.GOOD if request.state is RequestState.DECODE else Tone.WARN
    return Tone.DIM if request.outcome == "ok" else Tone.BAD


REQUESTS: ListKind[RequestView] = ListKind(
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
        Column("ROUTE REASON", lambda r: r.reason or "", wide=True),
    ),
    name=lambda r: r.id,
    empty_text="no requests in flight or recently finished",
)
