"""The requests table. It asks for itself, and only while somebody looks at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice

from rich.text import Text
from textual import work

from cortex_cli.render.requests import milliseconds, speed, started, state_text
from cortex_cli.render.table import printable
from cortex_cli.tui.lazy_rows import Rows
from cortex_cli.tui.theme import ink
from cortex_cli.tui.widgets.table import Column, Table
from cortex_common.errors import CortexError
from cortex_common.schema.requests import RequestList, RequestView

COLUMNS = (
    Column("short", "ID", 12, 0, most=28),
    Column("state", "STATE", 15, 0, most=19),
    Column("model", "MODEL", 18, 0, most=44),
    Column("key", "KEY", 8, 2, most=14),
    Column("node", "NODE", 8, 5, most=12),
    Column("started", "STARTED", 8, 6),
    Column("queue", "QUEUE", 6, 4, right=True),
    Column("ttft", "TTFT", 6, 3, right=True),
    Column("total", "TOTAL", 6, 1, right=True),
    Column("tokens", "IN>OUT", 11, 2, right=True),
    Column("speed", "TOK/S", 6, 7, right=True),
)
_UNDER_WAY = {"queue": "warning", "loading": "warning", "prefill": "warning", "decode": "success"}
EVERY_S = 1.0

ROWS = 100
"""At least; all under way are shown. The newest that ended stands first of those, so each that ends moves them all."""


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A line of the table."""

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


def request_rows(found: RequestList, words: str) -> Rows[RequestRow]:
    """Those under way, then the last that ended, that hold every word of the filter."""
    wanted = words.lower().split()

    def holds(request: RequestView) -> bool:
        told = (request.id, state_text(request), request.model, request.key, request.node)
        text = " ".join(part for part in told if part).lower()
        return all(word in text for word in wanted)

    active = list(filter(holds, found.active))
    # As many lines as before, whatever comes and goes, need no new layout.
    ended = islice(filter(holds, found.recent), max(0, ROWS - len(active)))
    shown = (*active, *ended)
    return Rows([r.id for r in shown], lambda index: _row(shown[index]))


def _row(request: RequestView) -> RequestRow:
    return RequestRow(
        id=request.id,
        short=printable(request.id),
        state=printable(state_text(request)),
        model=printable(request.model or "–"),
        key=printable(request.key or "–"),
        node=printable(request.node or "–"),
        started=started(request),
        queue=milliseconds(request.queue_ms),
        ttft=milliseconds(request.ttft_ms),
        total=milliseconds(request.total_ms),
        tokens=f"{request.tokens_in}>{request.tokens_out}",
        speed=speed(request),
    )


def describe_request(request: RequestView) -> list[tuple[str, str]]:
    """All about one request as (name, value), empty values left out."""
    facts = [
        ("state", state_text(request)),
        ("key", request.key or ""),
        ("model", request.model or ""),
        ("route", request.route),
        ("node", request.node or ""),
        ("instance", request.instance or ""),
        ("why there", request.reason or ""),
        ("started", started(request)),
        ("cold start", "yes" if request.cold_start else ""),
        ("waited", milliseconds(request.queue_ms)),
        ("first token", milliseconds(request.ttft_ms)),
        ("in total", milliseconds(request.total_ms)),
        ("tokens", f"{request.tokens_in} in, {request.tokens_out} out, {speed(request)}/s"),
    ]
    return [(name, printable(value)) for name, value in facts if value]


class RequestTable(Table[RequestRow]):
    """Requests under way and the last that ended.

    Args:
        ask: for the requests, and so many of those that ended; None where nobody can be asked, as in a recording.
    """

    RESTS_ON_TOP = True

    def __init__(self, ask: Callable[[int | None], Awaitable[RequestList]] | None) -> None:
        super().__init__("requests", COLUMNS)
        self._ask = ask
        self._found = RequestList(at=0.0)
        self._words = ""

    def on_mount(self) -> None:
        """Begin to look."""
        self.border_title = "requests"
        if self._ask is None:
            self.border_title = "requests: a recording holds none"
        else:
            self.set_interval(EVERY_S, self._look)

    def _look(self) -> None:
        """Ask, if anybody looks."""
        if self.display and self.is_on_screen:
            self.ask()

    def narrow(self, words: str) -> None:
        """Show only rows that hold these words."""
        if words != self._words:
            self._words = words
            self._draw()
            self._look()

    @property
    def request(self) -> RequestView | None:
        """The one under the cursor."""
        name = self.current
        both = (*self._found.active, *self._found.recent)
        return next((r for r in both if r.id == name), None)

    @work(exclusive=True, group="requests", exit_on_error=False)
    async def ask(self) -> None:
        """Ask, and show the answer."""
        if self._ask is None:
            return
        try:
            # More than are shown are of use to a filter alone.
            self._found = await self._ask(None if self._words else ROWS)
        except CortexError as failed:
            self.border_title = Text(f"requests: {printable(failed.message)}").markup
        else:
            self._draw()

    def _draw(self) -> None:
        self.show(request_rows(self._found, self._words))
        active, ended = len(self._found.active), len(self._found.recent)
        words = f" /{self._words}" if self._words else ""
        title = f"requests: {active} under way, the last {ended} that ended{words}"
        if self._ask is not None:
            self.border_title = Text(title).markup

    def tone(self, column: str, value: str) -> str:
        """See `Table.tone`."""
        if column != "state":
            return ""
        if value == "ok":
            return "dim"
        return ink(self.app, _UNDER_WAY.get(value, "error"))
