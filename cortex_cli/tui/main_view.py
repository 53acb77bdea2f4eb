"""The main screen's widgets together, drawn from one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from cortex_cli.render.table import printable
from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.history import History
from cortex_cli.tui.screens.dialogs import facts_text
from cortex_cli.tui.view import Choice, describe, rows, summary
from cortex_cli.tui.widgets.detail import DetailPanel
from cortex_cli.tui.widgets.devices import DevicePanel
from cortex_cli.tui.widgets.events import EventLines
from cortex_cli.tui.widgets.lines import Lines
from cortex_cli.tui.widgets.models import ModelTable
from cortex_cli.tui.widgets.requests import RequestTable
from cortex_cli.tui.widgets.summary import SummaryLine
from cortex_cli.watch import Lost
from cortex_common.schema.fleet import FleetSnapshot

SHORT_SCREEN = 24
OVERVIEW = "overview"
VIEWS = (OVERVIEW, "models", "gpus", "requests", "events")


@dataclass(frozen=True, slots=True)
class Shown:
    """What is to be seen.

    Attributes:
        ghosts: memory that a planned action would take.
        lost: the gateway is not to be had, and why.
        where: what the source is called.
        mode: "live", "FROZEN", "LOST", "replay", with "read-only".
    """

    snapshot: FleetSnapshot | None
    history: History
    choice: Choice
    ghosts: Sequence[Ghost]
    lost: Lost | None
    where: str
    mode: str


class Picture(Vertical):
    """Summary, banner, devices, models, requests, events and the details of the model under the cursor.

    Args:
        ascii_only: draw with ASCII alone.
        requests: the table of requests.

    Attributes:
        view: which of `VIEWS` is shown.
    """

    def __init__(self, *, ascii_only: bool, requests: RequestTable) -> None:
        super().__init__(id="picture")
        # Held, and not looked up: a picture may fall due while another screen lies on top.
        self.view = OVERVIEW
        self.table = ModelTable()
        self.requests = requests
        self._summary = SummaryLine(id="summary")
        self._banner = Static(id="banner", markup=False)
        self.devices = DevicePanel(ascii_only=ascii_only)
        self.events = EventLines()
        self._detail = DetailPanel()

    def compose(self) -> ComposeResult:
        """See the class."""
        yield self._summary
        yield self._banner
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield self.devices
                yield self.table
                yield self.requests
                yield self.events
            yield self._detail

    def on_mount(self) -> None:
        """Name the frames."""
        self.devices.border_title = "devices"
        self.events.border_title = "events"

    def switch(self, view: str) -> None:
        """Show one of `VIEWS`, and have the keys work in it."""
        self.view = view
        for name in VIEWS:
            self.screen.set_class(name == view != OVERVIEW, f"view-{name}")
        self.lines.focus()

    @property
    def lines(self) -> Lines:
        """Those that keys move in."""
        moving: dict[str, Lines] = {
            "gpus": self.devices,
            "requests": self.requests,
            "events": self.events,
        }
        return moving.get(self.view, self.table)

    def draw(self, shown: Shown) -> None:
        """Draw all of it."""
        self.draw_banner(shown)
        snapshot = shown.snapshot
        if snapshot is None:
            return
        with self.app.batch_update():
            short = self.app.size.height < SHORT_SCREEN
            # What a view hides is drawn when it is shown again; whether it shows already is not asked, as that is
            # known only after the next layout.
            if self.view in {OVERVIEW, "gpus"}:
                self.devices.show(
                    snapshot,
                    shown.history,
                    shown.ghosts,
                    compact=short,
                    warnings=self.view == "gpus",
                )
            if self.view in {OVERVIEW, "models"}:
                self.table.show(rows(snapshot, shown.history, shown.choice))
                title = _table_title(shown.choice, self.table.row_count, len(snapshot.models))
                self.table.border_title = Text(title).markup
            if self.view == "events":
                self.events.show()
            self.requests.narrow(shown.choice.words)
            self.draw_detail(shown)

    def draw_banner(self, shown: Shown) -> None:
        """Draw the line on top and, when the gateway is lost, the banner below it."""
        lost = shown.lost
        if self.has_class("lost") != (lost is not None):
            self._banner.set_class(lost is not None, "shown")
            self.set_class(lost is not None, "lost")
            # What can't be done without a gateway is greyed.
            self.screen.refresh_bindings()
        if lost is not None:
            again = f"; trying again in {lost.retry_in_s:.0f}s" if lost.retry_in_s else ""
            old = "" if shown.snapshot is None else "; below is what was last seen"
            self._banner.update(printable(f"lost: {lost.why}{again}{old}"))
        if shown.snapshot is not None:
            facts = summary(shown.snapshot, shown.history)
            self._summary.show(facts, shown.where, shown.mode)

    def draw_detail(self, shown: Shown) -> None:
        """Draw what is known of the model under the cursor."""
        name = self.table.current
        model = shown.snapshot.model(name) if name and shown.snapshot else None
        if model is not None and shown.snapshot is not None and self.view == OVERVIEW:
            facts = describe(model, shown.snapshot, shown.history)
            self._detail.show(model.id, facts_text(facts))


def _table_title(choice: Choice, shown: int, total: int) -> str:
    turned = " reversed" if choice.reverse else ""
    words = f" /{choice.words}" if choice.words else ""
    marked = f" {len(choice.marked)} marked" if choice.marked else ""
    return f"models {shown}/{total}{words} by {choice.sort}{turned}{marked}"
