"""`cortex top`: the wiring of source, view models, widgets and keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import PurePath
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from cortex_cli.logs import GATEWAY
from cortex_cli.tui.actions import Actions
from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.command_palette import FleetCommands, Palette
from cortex_cli.tui.commands import CHANGES_FLEET, Command, Verb
from cortex_cli.tui.keys import DISTURBING, KEYS, VIEWS_WITHOUT, keys_text
from cortex_cli.tui.main_view import SHORT_SCREEN, Picture, Shown
from cortex_cli.tui.operations import Operator
from cortex_cli.tui.options import FASTEST_S, SLOWEST_S, Look
from cortex_cli.tui.screens.dialogs import Page, page
from cortex_cli.tui.screens.logs import LogScreen
from cortex_cli.tui.source import Source
from cortex_cli.tui.theme import wear
from cortex_cli.tui.view import Choice, Sort, as_json, describe, found
from cortex_cli.tui.view_state import Known
from cortex_cli.tui.widgets.footer import KeyLine
from cortex_cli.tui.widgets.line import Line
from cortex_cli.tui.widgets.requests import RequestTable, describe_request
from cortex_cli.tui.widgets.table import Table
from cortex_cli.watch import Lost
from cortex_common.errors import BadRequest
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import FleetSnapshot, ModelView

_WIDTHS: list[tuple[int, str]] | None = [(0, "-narrow"), (80, "-normal"), (120, "-wide")]
_HEIGHTS: list[tuple[int, str]] | None = [(0, "-short"), (SHORT_SCREEN, "-tall")]


class Top(App[None]):
    """The dashboard.

    Args:
        source: of snapshots.
        operator: who carries out what keys ask for.
        look: how it is wanted.

    Raises:
        BadRequest: there is no such theme.
    """

    CSS_PATH: ClassVar[str | PurePath | list[str | PurePath] | None] = "cortex.tcss"
    TITLE: str | None = "cortex"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = App.COMMANDS | {FleetCommands}
    BINDINGS = KEYS
    HORIZONTAL_BREAKPOINTS = _WIDTHS
    VERTICAL_BREAKPOINTS = _HEIGHTS

    def __init__(self, source: Source, operator: Operator, look: Look) -> None:
        super().__init__()
        # Not later: one that is put on over another has all style sheets read again.
        wear(self, look.theme)
        self._source = source
        self._look = look
        self._operator = operator
        self._actions = Actions(self, operator, self._show_ghosts)
        self._ghosts: Sequence[Ghost] = ()
        self._known = Known()
        self._choice = Choice()
        self._stale = True
        self._interval = look.pause_s
        self._timer: Timer | None = None
        requests = RequestTable(operator.requests if look.live else None)
        self._picture = Picture(ascii_only=look.ascii_only, requests=requests)
        self._line = Line()

    # -- life --------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The main screen."""
        yield self._picture
        yield self._line
        yield KeyLine()

    def on_mount(self) -> None:
        """Start to follow and to draw."""
        self.set_keymap(self._look.keys)
        self._picture.table.focus()
        self._timer = self.set_interval(self._interval, self._draw)
        self._follow()

    @work(exclusive=True, group="follow", exit_on_error=False)
    async def _follow(self) -> None:
        async with aclosing(self._source.follow()) as seen_all:
            async for seen in seen_all:
                if isinstance(seen, AuditEntry):
                    self._picture.events.note(seen)
                    self._stale = True
                elif isinstance(seen, Lost):
                    self._lose(seen)
                else:
                    self._stale = True
                    if self._known.take(seen):
                        self._draw()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """A follower that failed for good, for want of a key say, is a state of the screen."""
        if event.worker.group == "follow" and event.state is WorkerState.ERROR:
            self._lose(Lost(str(event.worker.error), 0.0))

    # -- drawing -----------------------------------------------------------------------------

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """The fleet on the screen."""
        return self._known.snapshot

    def _shown(self) -> Shown:
        return Shown(
            snapshot=self.snapshot,
            history=self._known.history,
            choice=self._choice,
            ghosts=self._ghosts,
            lost=self._known.lost,
            where=self._look.where,
            mode=self._known.mode(live=self._look.live, read_only=self._look.read_only),
        )

    def _draw(self, *, anyway: bool = False) -> None:
        if self._picture.is_attached and (self._stale or anyway):
            self._stale = False
            self._picture.draw(self._shown())

    def _lose(self, lost: Lost) -> None:
        self._known.lost = lost
        self._picture.draw_banner(self._shown())

    def _show_ghosts(self, ghosts: Sequence[Ghost]) -> None:
        self._ghosts = ghosts
        self._draw(anyway=True)

    @on(Table.Highlighted)
    def _cursor_moved(self) -> None:
        self._picture.draw_detail(self._shown())

    def on_resize(self) -> None:
        """Lay out anew once the widgets know their sizes."""
        self.call_after_refresh(self._draw, anyway=True)

    def action_command_palette(self) -> None:
        """Offer what there is to do with the fleet."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    # -- what the person points at -----------------------------------------------------------

    def _current(self) -> ModelView | None:
        name, snapshot = self._picture.table.current, self.snapshot
        return snapshot.model(name) if name and snapshot else None

    def _meant(self) -> list[str]:
        """The marked models, or the one under the cursor."""
        if self._choice.marked:
            return sorted(self._choice.marked)
        model = self._current()
        return [model.id] if model else []

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - textual's signature
        """Grey what a read-only screen or a lost gateway can't do; hide what has nothing to act on in this view."""
        if self._picture.view in VIEWS_WITHOUT.get(action, ()):
            return False
        return None if action in DISTURBING and not self._may_disturb else True

    @property
    def _may_disturb(self) -> bool:
        return not self._look.read_only and self._known.lost is None

    # -- keys --------------------------------------------------------------------------------

    @work
    async def action_load(self) -> None:
        """Load what is meant, after its plan was shown."""
        await self._actions.load(self._meant())

    @work
    async def action_unload(self) -> None:
        """Unload what is meant."""
        if self.snapshot is not None and (models := self._meant()):
            await self._actions.unload(models, self.snapshot)

    @work
    async def action_evict(self) -> None:
        """End one instance of what is meant."""
        if self.snapshot is not None and (models := self._meant()):
            await self._actions.evict(models)

    @work
    async def action_pin(self) -> None:
        """Pin or unpin what is meant."""
        if self.snapshot is not None:
            await self._actions.pin(self._meant(), self.snapshot)

    @work
    async def action_cordon(self) -> None:
        """Cordon the node that the model under the cursor stands on, or end that."""
        if (model := self._current()) and self.snapshot is not None:
            nodes = [i.node for i in self.snapshot.instances() if i.model == model.id]
            if nodes:
                await self._actions.cordon(nodes[0], self.snapshot)
            else:
                self._actions.say("it stands on no node; say :cordon NODE", severity="warning")

    @work
    async def action_defrag(self) -> None:
        """Make free memory one piece, after its moves were shown."""
        await self._actions.defrag()

    def action_describe(self) -> None:
        """Show all about the model or the request under the cursor."""
        if self._picture.view == "requests":
            if request := self._picture.requests.request:
                self.push_screen(page(request.id, describe_request(request)))
        elif (model := self._current()) and self.snapshot:
            facts = describe(model, self.snapshot, self._known.history)
            self.push_screen(page(model.id, facts))

    @on(Table.Chosen)
    def _row_selected(self) -> None:
        self.action_describe()

    @work
    async def action_cancel(self) -> None:
        """End the request under the cursor."""
        request = self._picture.requests.request
        if request is None or self._picture.view != "requests":
            return
        if request.active:
            await self._actions.cancel(request.id)
        else:
            self._actions.say("that request has ended", severity="warning")

    def action_logs(self) -> None:
        """Show what the engine of the model under the cursor writes; beside the events, what the gateway logs."""
        name: str | None = GATEWAY
        if self._picture.view == "requests":
            request = self._picture.requests.request
            name = request.model if request is not None else None
        elif self._picture.view != "events":
            model = self._current()
            name = model.id if model is not None else None
        if name is not None:
            self._show_log(name)

    def _show_log(self, name: str) -> None:
        if self._look.live:
            self.push_screen(LogScreen(name, self._operator.log(name)))
        else:
            self._actions.say("a recording holds no logs", severity="warning")

    def action_json(self) -> None:
        """Show the model under the cursor as JSON."""
        if (model := self._current()) and self.snapshot:
            self.push_screen(Page(model.id, Text(as_json(model))))

    def action_keys(self) -> None:
        """Show what each key does."""
        self.push_screen(Page("keys", keys_text()))

    def action_mark(self) -> None:
        """Mark the model under the cursor for the next action, or unmark it."""
        if model := self._current():
            self._choose(replace(self._choice, marked=self._choice.marked ^ {model.id}))
            self._picture.table.action_move(1)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._choose(replace(self._choice, sort=self._choice.sort.next))

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._choose(replace(self._choice, reverse=not self._choice.reverse))

    def action_freeze(self) -> None:
        """Hold the picture, or let it go on."""
        self._known.freeze()
        self._draw(anyway=True)

    def action_redraw(self) -> None:
        """Draw now."""
        self._draw(anyway=True)

    def action_faster(self) -> None:
        """Draw twice as often."""
        self._pace(self._interval / 2)

    def action_slower(self) -> None:
        """Draw half as often."""
        self._pace(self._interval * 2)

    def _pace(self, interval: float) -> None:
        self._interval = min(SLOWEST_S, max(FASTEST_S, interval))
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._interval, self._draw)
        self._actions.say(f"drawing every {self._interval:g}s")

    def action_zoom(self) -> None:
        """The models table alone, or everything again."""
        self.action_view("overview" if self._picture.view == "models" else "models")

    def action_view(self, name: str) -> None:
        """Switch between overview, models, devices, requests and events."""
        self._picture.switch(name)
        self.refresh_bindings()
        self._draw(anyway=True)
        if name == "requests":
            self._picture.requests.ask()

    def action_move(self, lines: int) -> None:
        """Move the cursor, or scroll where there is none."""
        self._picture.lines.action_move(lines)

    def action_leave(self) -> None:
        """Close the line, else clear the filter, else the marks, else return to the overview."""
        if self._line.is_open:
            self._line.close()
        elif self._choice.words:
            self._choose(replace(self._choice, words=""))
        elif self._choice.marked:
            self._choose(replace(self._choice, marked=frozenset()))
        else:
            self.action_view("overview")

    def _choose(self, choice: Choice) -> None:
        self._choice = choice
        self._draw(anyway=True)

    # -- the line at the bottom --------------------------------------------------------------

    def action_filter(self) -> None:
        """Type words that models must hold; those with ! they must not."""
        self._line.open_filter(self._choice.words)

    def action_command(self) -> None:
        """Type a command."""
        self._line.open_command()

    @on(Line.Filtered)
    def _filtered(self, event: Line.Filtered) -> None:
        self._choose(replace(self._choice, words=event.words))

    @on(Line.Closed)
    def _line_closed(self) -> None:
        self._picture.lines.focus()

    @on(Line.Misunderstood)
    def _misunderstood(self, event: Line.Misunderstood) -> None:
        self._refuse(event.error)

    def _refuse(self, why: BadRequest) -> None:
        self._actions.say("\n".join((why.message, *why.hints)), severity="error")

    @on(Line.Commanded)
    def _commanded(self, event: Line.Commanded) -> None:
        self.obey(event.command)

    def obey(self, command: Command) -> None:
        """Carry a command of the line or the palette out."""
        if command.verb in CHANGES_FLEET:
            self._change_fleet(command)
            return
        match command.verb:
            case Verb.FILTER:
                self._choose(replace(self._choice, words=command.argument))
            case Verb.SORT:
                self._choose(replace(self._choice, sort=Sort(command.argument)))
            case Verb.MODEL:
                self._go_to(command.argument)
            case Verb.NODE:
                self._choose(replace(self._choice, words=command.argument))
            case Verb.LOGS:
                self._show_log(command.argument)
            case Verb.THEME:
                self._wear(command.argument)
            case Verb.HELP:
                self.action_keys()
            case Verb.QUIT:
                self.exit()
            case _:
                self.action_view(command.verb)

    def _wear(self, theme: str) -> None:
        try:
            wear(self, theme)
        except BadRequest as failed:
            self._refuse(failed)
        else:
            self._draw(anyway=True)

    @work
    async def _change_fleet(self, command: Command) -> None:
        snapshot = self.snapshot
        if not self._may_disturb or snapshot is None:
            why = "this screen is read-only" if self._look.read_only else "the gateway is lost"
            self._actions.say(why, severity="error")
            return
        await self._actions.obey(command, snapshot)

    def _go_to(self, words: str) -> None:
        if (model := found(self.snapshot, words)) is None:
            self._actions.say(f"no model matches {words!r}", severity="error")
        else:
            self._choose(replace(self._choice, words=""))
            self._picture.table.go_to(model.id)
