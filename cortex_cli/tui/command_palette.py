"""What the palette (ctrl+p) offers of the fleet: models and nodes by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider

from cortex_cli.logs import GATEWAY
from cortex_cli.tui.commands import Command, Verb

if TYPE_CHECKING:
    from cortex_common.schema.fleet import FleetSnapshot

_ON_MODELS = (
    (Verb.LOAD, "Load {}…", "Show its plan, then load it"),
    (Verb.UNLOAD, "Unload {}…", "After a question"),
    (Verb.PIN, "Pin {}", "Protect it from eviction"),
    (Verb.UNPIN, "Unpin {}", "End that"),
    (Verb.LOGS, "Logs of {}", "What its engine writes"),
    (Verb.MODEL, "Go to {}", "Put the cursor on it"),
)
_ON_NODES = (
    (Verb.NODE, "Go to node {}", "Show its models alone"),
    (Verb.CORDON, "Cordon {}…", "Place nothing new on it"),
    (Verb.UNCORDON, "Uncordon {}…", "Use it again"),
    (Verb.DRAIN, "Drain {}…", "Move or unload what it holds"),
    (Verb.LOGS, "Logs of node {}", "What its neuron logs"),
)
_VIEWS = (Verb.OVERVIEW, Verb.MODELS, Verb.GPUS, Verb.REQUESTS, Verb.EVENTS)


def offers(snapshot: FleetSnapshot | None) -> Iterator[tuple[Command, str, str]]:
    """Each command with its name and what it does."""
    for verb in _VIEWS:
        yield Command(verb), f"View {verb}", "Switch to it"
    yield Command(Verb.LOGS, GATEWAY), "Logs of the gateway", "What it logs"
    if snapshot is None:
        return
    for verb, title, told in _ON_NODES:
        for node in snapshot.nodes:
            yield Command(verb, node.name), title.format(node.name), told
    for verb, title, told in _ON_MODELS:
        for model in snapshot.models:
            yield Command(verb, model.id), title.format(model.id), told


class Commanded(Protocol):
    """The app that the palette lies over."""

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """The fleet on the screen."""
        ...

    def obey(self, command: Command) -> None:
        """Carry a command out."""
        ...


class FleetCommands(Provider):
    """See the module."""

    @property
    def _top(self) -> Commanded:
        return cast("Commanded", self.app)

    async def discover(self) -> Hits:
        """The views, before anything is typed; five hundred models would bury them."""
        for command, title, told in offers(None):
            yield DiscoveryHit(title, partial(self._top.obey, command), help=told)

    async def search(self, query: str) -> Hits:
        """Whatever matches."""
        matcher = self.matcher(query)
        for command, title, told in offers(self._top.snapshot):
            if (score := matcher.match(title)) > 0:
                yield Hit(
                    score, matcher.highlight(title), partial(self._top.obey, command), help=told
                )


class Palette(CommandPalette):
    """Textual's, which on a slow host may still be told of hits when it is closed already, and then ends the app."""

    def _watch__list_visible(self) -> None:
        if self.query(CommandList):
            super()._watch__list_visible()
