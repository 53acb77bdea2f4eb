"""The app of `cortex top`: connects the source, the view state, the widgets and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import PurePath
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.filter import LineFilter
from textual.timer import Timer
from textual.worker import Worker, WorkerState
from typing_extensions import override

from cortex_cli.logs import GATEWAY
from cortex_cli.tui.actions import FleetActions
from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.command_palette import FleetCommands, Palette
from cortex_cli.tui.commands import Command, ScreenCommand
from cortex_cli.tui.keys import KEYS, availability, keys_text
from cortex_cli.tui.main_view import HEIGHTS, WIDTHS, MainView
from cortex_cli.tui.neutralizer import Neutralizer
from cortex_cli.tui.operations import Operator
from cortex_cli.tui.options import MAX_INTERVAL_S, MIN_INTERVAL_S, ScreenOptions
from cortex_cli.tui.screens.dialogs import Page, facts_page
from cortex_cli.tui.screens.logs import LogScreen
from cortex_cli.tui.source import Source
from cortex_cli.tui.theme import apply_theme
from cortex_cli.tui.view import Choice, Sort, as_json, describe, find_model
from cortex_cli.tui.view_state import ViewState
from cortex_cli.tui.widgets.footer import KeyLine
from cortex_cli.tui.widgets.line import InputLine
from cortex_cli.tui.widgets.requests import RequestTable, describe_request
from cortex_cli.tui.widgets.table import Table
from cortex_cli.watch import ConnectionLost
from cortex_common.errors import BadRequest
from cortex_common.schema import operations
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import FleetSnapshot, ModelView

_NEUTRALIZER = Neutralizer()


class Top(App[None]):
    """The dashboard.

    Args:
        source: yields snapshots and audit entries.
        operator: the operator API.
        options: options of the screen.

    Raises:
        BadRequest: there is no such theme.
    """

    CSS_PATH: ClassVar[str | PurePath | list[str | PurePath] | None] = "cortex.tcss"
    TITLE: str | None = "cortex"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = App.COMMANDS | {FleetCommands}
    BINDINGS = KEYS
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS

    def __init__(self, source: Source, operator: Operator, options: ScreenOptions) -> None:
        super().__init__()
        # Before the first drawing: changing a theme later parses all style sheets again.
        apply_theme(self, options.theme)
        self._source = source
        self._options = options
        self._operator = operator
        self._actions = FleetActions(self, operator, self._show_ghosts)
        self._state = ViewState(options.source, live=options.live, read_only=options.read_only)
        self._stale = True
        self._interval = options.pause_s
        self._timer: Timer | None = None
        requests = RequestTable(operator.requests if options.live else None)
        self._view = MainView(ascii_only=options.ascii_only, requests=requests)
        self._line = InputLine()

    # -- lifecycle ---------------------------------------------------------------------------

    @override
    def get_line_filters(self) -> Sequence[LineFilter]:
        # Everything that is drawn passes the filters, whichever widget it comes from.
        return (_NEUTRALIZER, *super().get_line_filters())

    @override
    def compose(self) -> ComposeResult:
        yield self._view
        yield self._line
        yield KeyLine()

    def on_mount(self) -> None:
        """Start following the source and drawing."""
        self.set_keymap(self._options.keys)
        self._view.table.focus()
        self._timer = self.set_interval(self._interval, self._draw)
        self._follow()

    @work(exclusive=True, group="follow", exit_on_error=False)
    async def _follow(self) -> None:
        async with aclosing(self._source.follow()) as updates:
            async for update in updates:
                if isinstance(update, AuditEntry):
                    self._view.events.add(update)
                    self._stale = True
                elif isinstance(update, ConnectionLost):
                    self._set_lost(update)
                else:
                    self._stale = True
                    if self._state.update(update):
                        self._draw()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Show a permanent failure of the source, such as a rejected key, as a lost connection."""
        if event.worker.group == "follow" and event.state is WorkerState.ERROR:
            self._set_lost(ConnectionLost(str(event.worker.error), 0.0))

    # -- drawing -----------------------------------------------------------------------------

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """The fleet on the screen."""
        return self._state.snapshot

    def _draw(self, *, force: bool = False) -> None:
        if self._view.is_attached and (self._stale or force):
            self._stale = False
            self._view.draw(self._state.frame)

    def _set_lost(self, lost: ConnectionLost) -> None:
        self._state.lost = lost
        self._view.draw_banner(self._state.frame)

    def _show_ghosts(self, ghosts: Sequence[Ghost]) -> None:
        self._state.ghosts = ghosts
        self._draw(force=True)

    @on(Table.Highlighted)
    def _cursor_moved(self) -> None:
        self._view.draw_detail(self._state.frame)

    def on_resize(self) -> None:
        """Redraw once the widgets know their new sizes."""
        self.call_after_refresh(self._draw, force=True)

    @override
    def action_command_palette(self) -> None:
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    # -- selection ---------------------------------------------------------------------------

    def _current_model(self) -> ModelView | None:
        name, snapshot = self._view.table.current, self.snapshot
        return snapshot.model(name) if name and snapshot else None

    def _selected_models(self) -> list[str]:
        """Return the marked models, or the one under the cursor."""
        if self._state.choice.marked:
            return sorted(self._state.choice.marked)
        return [model.id] if (model := self._current_model()) else []

    @override
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return availability(action, self._view.view, can_operate=self._state.blocked is None)

    # -- keys --------------------------------------------------------------------------------

    @work
    async def action_load(self) -> None:
        """Load the selected models, after showing the plan."""
        await self._actions.load(self._selected_models())

    @work
    async def action_unload(self) -> None:
        """Unload the selected models."""
        if self.snapshot is not None and (models := self._selected_models()):
            await self._actions.unload(models, self.snapshot)

    @work
    async def action_evict(self) -> None:
        """Evict one instance of each selected model."""
        if self.snapshot is not None and (models := self._selected_models()):
            await self._actions.evict(models)

    @work
    async def action_pin(self) -> None:
        """Pin or unpin the selected models."""
        if self.snapshot is not None:
            await self._actions.toggle_pin(self._selected_models(), self.snapshot)

    @work
    async def action_cordon(self) -> None:
        """Cordon or uncordon the node of the model under the cursor."""
        if (model := self._current_model()) and self.snapshot is not None:
            nodes = [i.node for i in self.snapshot.instances() if i.model == model.id]
            if nodes:
                await self._actions.toggle_cordon(nodes[0], self.snapshot)
            else:
                message = "the model is on no node; use :cordon NODE"
                self._actions.notify(message, severity="warning")

    @work
    async def action_defrag(self) -> None:
        """Consolidate free memory, after showing the moves."""
        await self._actions.defrag()

    @on(Table.Chosen)
    def action_describe(self) -> None:
        """Show details of the model or the request under the cursor."""
        if self._view.view == "requests":
            if request := self._view.requests.request:
                self.push_screen(facts_page(request.id, describe_request(request)))
        elif (model := self._current_model()) and self.snapshot:
            facts = describe(model, self.snapshot, self._state.history)
            self.push_screen(facts_page(model.id, facts))

    @work
    async def action_cancel(self) -> None:
        """Cancel the request under the cursor."""
        request = self._view.requests.request
        if request is None or self._view.view != "requests":
            return
        if request.active:
            await self._actions.confirm_and_run(operations.CANCEL, request.id)
        else:
            self._actions.notify("the request has already finished", severity="warning")

    def action_logs(self) -> None:
        """Show the engine log of the model under the cursor; in the events view, the gateway's log."""
        name: str | None = GATEWAY
        if self._view.view == "requests":
            request = self._view.requests.request
            name = request.model if request is not None else None
        elif self._view.view != "events":
            model = self._current_model()
            name = model.id if model is not None else None
        if name is not None:
            self._show_log(name)

    def _show_log(self, name: str) -> None:
        if self._options.live:
            self.push_screen(LogScreen(name, self._operator.log(name)))
        else:
            self._actions.notify("a recording contains no logs", severity="warning")

    def action_json(self) -> None:
        """Show the model under the cursor as JSON."""
        if (model := self._current_model()) and self.snapshot:
            self.push_screen(Page(model.id, Text(as_json(model))))

    def action_keys(self) -> None:
        """Show all keys."""
        self.push_screen(Page("keys", keys_text()))

    def action_mark(self) -> None:
        """Mark or unmark the model under the cursor."""
        if model := self._current_model():
            self._state.toggle_mark(model.id)
            self._draw(force=True)
            self._view.table.action_move(1)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._choose(replace(self._state.choice, sort=self._state.choice.sort.next))

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._choose(replace(self._state.choice, reverse=not self._state.choice.reverse))

    def action_freeze(self) -> None:
        """Freeze or unfreeze the screen."""
        self._state.toggle_freeze()
        self._draw(force=True)

    def action_redraw(self) -> None:
        """Draw now."""
        self._draw(force=True)

    def action_faster(self) -> None:
        """Draw twice as often."""
        self._set_interval(self._interval / 2)

    def action_slower(self) -> None:
        """Draw half as often."""
        self._set_interval(self._interval * 2)

    def _set_interval(self, seconds: float) -> None:
        self._interval = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, seconds))
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._interval, self._draw)
        self._actions.notify(f"drawing every {self._interval:g}s")

    def action_zoom(self) -> None:
        """Switch between the models view and the overview."""
        self.action_view("overview" if self._view.view == "models" else "models")

    def action_view(self, name: str) -> None:
        """Switch to one of the views."""
        self._view.switch(name)
        self.refresh_bindings()
        self._draw(force=True)
        if name == "requests":
            self._view.requests.fetch()

    def action_move(self, lines: int) -> None:
        """Move the cursor, or scroll a widget that has none."""
        self._view.lines.action_move(lines)

    def action_leave(self) -> None:
        """Close the input line; else clear the filter; else the marks; else return to the overview."""
        choice = self._state.choice
        if self._line.is_open:
            self._line.close()
        elif choice.words:
            self._choose(replace(choice, words=""))
        elif choice.marked:
            self._choose(replace(choice, marked=frozenset()))
        else:
            self.action_view("overview")

    def _choose(self, choice: Choice) -> None:
        self._state.choice = choice
        self._draw(force=True)

    def _filter(self, words: str) -> None:
        self._choose(replace(self._state.choice, words=words))

    # -- input line --------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Open the line for the filter."""
        self._line.open_filter(self._state.choice.words)

    def action_command(self) -> None:
        """Open the line for a command."""
        self._line.open_command()

    @on(InputLine.FilterChanged)
    def _filter_changed(self, event: InputLine.FilterChanged) -> None:
        self._filter(event.words)

    @on(InputLine.Closed)
    def _line_closed(self) -> None:
        self._view.lines.focus()

    @on(InputLine.CommandRejected)
    def _command_rejected(self, event: InputLine.CommandRejected) -> None:
        self._show_error(event.error)

    def _show_error(self, error: BadRequest) -> None:
        self._actions.notify("\n".join((error.message, *error.hints)), severity="error")

    @on(InputLine.CommandEntered)
    def _command_entered(self, event: InputLine.CommandEntered) -> None:
        self.run_command(event.command)

    def run_command(self, command: Command) -> None:
        """Run a command of the input line or the palette."""
        if command.operation is not None:
            self._run_operation(command)
            return
        match command.name:
            case ScreenCommand.FILTER | ScreenCommand.NODE:
                self._filter(command.argument)
            case ScreenCommand.SORT:
                self._choose(replace(self._state.choice, sort=Sort(command.argument)))
            case ScreenCommand.MODEL:
                self._go_to(command.argument)
            case ScreenCommand.LOGS:
                self._show_log(command.argument)
            case ScreenCommand.THEME:
                self._set_theme(command.argument)
            case ScreenCommand.HELP:
                self.action_keys()
            case ScreenCommand.QUIT:
                self.exit()
            case view:
                self.action_view(view)

    def _set_theme(self, theme: str) -> None:
        try:
            apply_theme(self, theme)
        except BadRequest as error:
            self._show_error(error)
        else:
            self._draw(force=True)

    @work
    async def _run_operation(self, command: Command) -> None:
        if (reason := self._state.blocked) is not None:
            self._actions.notify(reason, severity="error")
        elif self.snapshot is not None:
            await self._actions.run(command, self.snapshot)

    def _go_to(self, words: str) -> None:
        if (model := find_model(self.snapshot, words)) is None:
            self._actions.notify(f"no model matches {words!r}", severity="error")
        else:
            self._filter("")
            self._view.table.go_to(model.id)
