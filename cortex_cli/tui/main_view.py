"""The widgets of the main screen, drawn together from one `Frame`."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static
from typing_extensions import override

from cortex_cli.terminal import neutralize_line
from cortex_cli.tui.screens.dialogs import facts_text
from cortex_cli.tui.view import Choice, describe, model_rows, summarize
from cortex_cli.tui.view_state import Frame
from cortex_cli.tui.widgets.detail import DetailPanel
from cortex_cli.tui.widgets.devices import DevicePanel
from cortex_cli.tui.widgets.events import EventLines
from cortex_cli.tui.widgets.lines import Lines
from cortex_cli.tui.widgets.models import ModelTable
from cortex_cli.tui.widgets.requests import RequestTable
from cortex_cli.tui.widgets.summary import SummaryLine

SHORT_SCREEN = 24
WIDTHS: list[tuple[int, str]] | None = [(0, "-narrow"), (80, "-normal"), (120, "-wide")]
HEIGHTS: list[tuple[int, str]] | None = [(0, "-short"), (SHORT_SCREEN, "-tall")]
"""Minimum sizes of the screen and the style class of each."""

OVERVIEW = "overview"
VIEWS = (OVERVIEW, "models", "gpus", "requests", "events")


class MainView(Vertical):
    """Summary, banner, devices, models, requests, events and the details of the model under the cursor.

    Args:
        ascii_only: draw with ASCII characters only.
        requests: the table of requests.

    Attributes:
        view: the current one of `VIEWS`.
    """

    def __init__(self, *, ascii_only: bool, requests: RequestTable) -> None:
        super().__init__(id="main")
        # Kept as attributes instead of queried: a drawing can be due while another screen is on top.
        self.view = OVERVIEW
        self.table = ModelTable()
        self.requests = requests
        self._summary = SummaryLine(id="summary")
        self._banner = Static(id="banner", markup=False)
        self.devices = DevicePanel(ascii_only=ascii_only)
        self.events = EventLines()
        self._detail = DetailPanel()

    @override
    def compose(self) -> ComposeResult:
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
        """Set the titles of the frames."""
        self.devices.border_title = "devices"
        self.events.border_title = "events"

    def switch(self, view: str) -> None:
        """Show one of `VIEWS` and focus its widget."""
        self.view = view
        for name in VIEWS:
            self.screen.set_class(name == view != OVERVIEW, f"view-{name}")
        self.lines.focus()

    @property
    def lines(self) -> Lines:
        """The widget that the movement keys apply to."""
        by_view: dict[str, Lines] = {
            "gpus": self.devices,
            "requests": self.requests,
            "events": self.events,
        }
        return by_view.get(self.view, self.table)

    def draw(self, frame: Frame) -> None:
        """Draw everything that the current view shows."""
        self.draw_banner(frame)
        snapshot = frame.snapshot
        if snapshot is None:
            return
        with self.app.batch_update():
            short = self.app.size.height < SHORT_SCREEN
            # A hidden widget is drawn when its view is shown. `view` decides, not whether the widget is displayed,
            # because that is only known after the next layout.
            if self.view in {OVERVIEW, "gpus"}:
                self.devices.show(
                    snapshot,
                    frame.history,
                    frame.ghosts,
                    compact=short,
                    warnings=self.view == "gpus",
                )
            if self.view in {OVERVIEW, "models"}:
                self.table.show(model_rows(snapshot, frame.history, frame.choice))
                title = _table_title(frame.choice, self.table.row_count, len(snapshot.models))
                self.table.border_title = Text(title).markup
            if self.view == "events":
                self.events.show()
            self.requests.filter(frame.choice.words)
            self.draw_detail(frame)

    def draw_banner(self, frame: Frame) -> None:
        """Draw the summary line and, when the gateway is lost, the banner below it."""
        lost = frame.lost
        if self.has_class("lost") != (lost is not None):
            self._banner.set_class(lost is not None, "visible")
            self.set_class(lost is not None, "lost")
            # Actions that need the gateway are greyed.
            self.screen.refresh_bindings()
        if lost is not None:
            retry = f"; retrying in {lost.retry_in_s:.0f}s" if lost.retry_in_s else ""
            stale = "" if frame.snapshot is None else "; the last known state is shown"
            self._banner.update(neutralize_line(f"connection lost: {lost.reason}{retry}{stale}"))
        if frame.snapshot is not None:
            facts = summarize(frame.snapshot, frame.history)
            self._summary.show(facts, frame.source, frame.mode)

    def draw_detail(self, frame: Frame) -> None:
        """Draw the details of the model under the cursor."""
        name = self.table.current
        model = frame.snapshot.model(name) if name and frame.snapshot else None
        if model is not None and frame.snapshot is not None and self.view == OVERVIEW:
            facts = describe(model, frame.snapshot, frame.history)
            self._detail.show(model.id, facts_text(facts))


def _table_title(choice: Choice, visible: int, total: int) -> str:
    order = " reversed" if choice.reverse else ""
    words = f" /{choice.words}" if choice.words else ""
    marked = f" {len(choice.marked)} marked" if choice.marked else ""
    return f"models {visible}/{total}{words} by {choice.sort}{order}{marked}"
