"""Fleet commands in the command palette (ctrl+p): views, operations and logs, with models and nodes by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider
from typing_extensions import override

from cortex_cli.logs import GATEWAY
from cortex_cli.tui.commands import FLEET_OPERATIONS, Command, ScreenCommand
from cortex_common.schema.operation import OperationTarget

if TYPE_CHECKING:
    from cortex_common.schema.fleet import FleetSnapshot

_VIEWS = (
    ScreenCommand.OVERVIEW,
    ScreenCommand.MODELS,
    ScreenCommand.GPUS,
    ScreenCommand.REQUESTS,
    ScreenCommand.EVENTS,
)


def palette_entries(snapshot: FleetSnapshot | None) -> Iterator[tuple[Command, str, str]]:
    """Yield each command with its title and help text; without a snapshot those without a name only."""
    for view in _VIEWS:
        yield Command(view), f"View {view}", "Switch the view"
    yield Command(ScreenCommand.LOGS, GATEWAY), "Logs of the gateway", "Follow its log"
    if snapshot is None:
        return
    for node in (node.name for node in snapshot.nodes):
        yield Command(ScreenCommand.NODE, node), f"Go to node {node}", "Show only its models"
        yield Command(ScreenCommand.LOGS, node), f"Logs of node {node}", "Follow its neuron's log"
        yield from _operations(OperationTarget.NODE, node)
    for model in (model.id for model in snapshot.models):
        yield from _operations(OperationTarget.MODEL, model)
        yield Command(ScreenCommand.LOGS, model), f"Logs of {model}", "Follow its engine's log"
        yield Command(ScreenCommand.MODEL, model), f"Go to {model}", "Move the cursor to it"


def _operations(target: OperationTarget, name: str) -> Iterator[tuple[Command, str, str]]:
    for operation in FLEET_OPERATIONS.values():
        if operation.target is target:
            title = f"{operation.name.capitalize()} {name}"
            yield Command(operation.name, name), title, operation.summary


class CommandRunner(Protocol):
    """The app below the palette."""

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """The fleet on the screen."""
        ...

    def run_command(self, command: Command) -> None:
        """Run a command."""
        ...


class FleetCommands(Provider):
    """Provider of the fleet commands."""

    @property
    def _runner(self) -> CommandRunner:
        return cast("CommandRunner", self.app)

    @override
    async def discover(self) -> Hits:
        # Before anything is typed: five hundred models would bury the views.
        for command, title, summary in palette_entries(None):
            yield DiscoveryHit(title, partial(self._runner.run_command, command), help=summary)

    @override
    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for command, title, summary in palette_entries(self._runner.snapshot):
            if (score := matcher.match(title)) > 0:
                yield Hit(
                    score,
                    matcher.highlight(title),
                    partial(self._runner.run_command, command),
                    help=summary,
                )


class Palette(CommandPalette):
    """Textual's palette, guarded against hits that arrive after it closed, which would otherwise end the app."""

    def _watch__list_visible(self) -> None:
        if self.query(CommandList):
            super()._watch__list_visible()
