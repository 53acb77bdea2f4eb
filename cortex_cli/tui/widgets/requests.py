"""The requests table. It polls the gateway itself, and only while it is visible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice

from rich.text import Text
from textual import work
from typing_extensions import override

from cortex_cli.render.requests import milliseconds, speed, started, state_text
from cortex_cli.terminal import neutralize_line
from cortex_cli.tui.lazy_rows import LazyRows
from cortex_cli.tui.theme import theme_color
from cortex_cli.tui.widgets.table import Column, Table
from cortex_common.errors import CortexError
from cortex_common.schema.requests import RequestList, RequestView

COLUMNS = (
    Column("short", "ID", 12, 0, max_width=28),
    Column("state", "STATE", 15, 0, max_width=19),
    Column("model", "MODEL", 18, 0, max_width=44),
    Column("key", "KEY", 8, 2, max_width=14),
    Column("node", "NODE", 8, 5, max_width=12),
    Column("started", "STARTED", 8, 6),
    Column("queue", "QUEUE", 6, 4, right=True),
    Column("ttft", "TTFT", 6, 3, right=True),
    Column("total", "TOTAL", 6, 1, right=True),
    Column("tokens", "IN>OUT", 11, 2, right=True),
    Column("speed", "TOK/S", 6, 7, right=True),
)
_STATE_COLORS = {
    "queue": "warning",
    "loading": "warning",
    "prefill": "warning",
    "decode": "success",
}
POLL_S = 1.0

ROWS = 100
"""Number of rows unless more requests are in flight. The newest finished request comes first of the finished ones."""


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A row of the table."""

    id: str
    short: str
    state: str
    model: str
    key: str
    node: str
    started: str
    queue: str
    ttft: str
    total: str
    tokens: str
    speed: str


def request_rows(requests: RequestList, words: str) -> LazyRows[RequestRow]:
    """Return the rows of requests in flight, then of finished ones, that match every word of the filter."""
    required = words.lower().split()

    def matches(request: RequestView) -> bool:
        fields = (request.id, state_text(request), request.model, request.key, request.node)
        text = " ".join(field for field in fields if field).lower()
        return all(word in text for word in required)

    active = list(filter(matches, requests.active))
    # A constant number of rows needs no new layout.
    finished = islice(filter(matches, requests.recent), max(0, ROWS - len(active)))
    visible = (*active, *finished)
    return LazyRows([r.id for r in visible], lambda index: _row(visible[index]))


def _row(request: RequestView) -> RequestRow:
    return RequestRow(
        id=request.id,
        short=neutralize_line(request.id),
        state=neutralize_line(state_text(request)),
        model=neutralize_line(request.model or "–"),
        key=neutralize_line(request.key or "–"),
        node=neutralize_line(request.node or "–"),
        started=started(request),
        queue=milliseconds(request.queue_ms),
        ttft=milliseconds(request.ttft_ms),
        total=milliseconds(request.total_ms),
        tokens=f"{request.tokens_in}>{request.tokens_out}",
        speed=speed(request),
    )


def describe_request(request: RequestView) -> list[tuple[str, str]]:
    """Return the facts of a request as (name, value) pairs, without empty values."""
    facts = [
        ("state", state_text(request)),
        ("key", request.key or ""),
        ("model", request.model or ""),
        ("route", request.route),
        ("node", request.node or ""),
        ("instance", request.instance or ""),
        ("route reason", request.reason or ""),
        ("started", started(request)),
        ("cold start", "yes" if request.cold_start else ""),
        ("queued", milliseconds(request.queue_ms)),
        ("first token", milliseconds(request.ttft_ms)),
        ("total", milliseconds(request.total_ms)),
        ("tokens", f"{request.tokens_in} in, {request.tokens_out} out, {speed(request)}/s"),
    ]
    return [(name, neutralize_line(value)) for name, value in facts if value]


class RequestTable(Table[RequestRow]):
    """Requests in flight and recently finished.

    Args:
        fetch: returns the requests, with at most the given number of finished ones; None for a recording, which
            contains no requests.
    """

    STICKY_TOP = True

    def __init__(self, fetch: Callable[[int | None], Awaitable[RequestList]] | None) -> None:
        super().__init__("requests", COLUMNS)
        self._fetch_requests = fetch
        self._requests = RequestList(at=0.0)
        self._words = ""

    def on_mount(self) -> None:
        """Start polling."""
        self.border_title = "requests"
        if self._fetch_requests is None:
            self.border_title = "requests: not part of a recording"
        else:
            self.set_interval(POLL_S, self._poll)

    def _poll(self) -> None:
        """Fetch the requests if the table is visible."""
        if self.display and self.is_on_screen:
            self.fetch()

    def filter(self, words: str) -> None:
        """Show only rows that match these words."""
        if words != self._words:
            self._words = words
            self._draw()
            self._poll()

    @property
    def request(self) -> RequestView | None:
        """The request under the cursor."""
        name = self.current
        requests = (*self._requests.active, *self._requests.recent)
        return next((r for r in requests if r.id == name), None)

    @work(exclusive=True, group="requests", exit_on_error=False)
    async def fetch(self) -> None:
        """Fetch and show the requests."""
        if self._fetch_requests is None:
            return
        try:
            # A filter searches all requests that the gateway remembers.
            self._requests = await self._fetch_requests(None if self._words else ROWS)
        except CortexError as error:
            self.border_title = Text(f"requests: {neutralize_line(error.message)}").markup
        else:
            self._draw()

    def _draw(self) -> None:
        self.show(request_rows(self._requests, self._words))
        active, finished = len(self._requests.active), len(self._requests.recent)
        words = f" /{self._words}" if self._words else ""
        title = f"requests: {active} in flight, {finished} finished{words}"
        if self._fetch_requests is not None:
            self.border_title = Text(title).markup

    @override
    def cell_style(self, column: str, value: str) -> str:
        if column != "state":
            return ""
        if value == "ok":
            return "dim"
        return theme_color(self.app, _STATE_COLORS.get(value, "error"))
