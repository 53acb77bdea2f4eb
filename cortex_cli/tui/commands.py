"""Parser of the command line that ":" opens. Pure. Operations have the names that they have in the command `cortex`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cortex_cli.tui.view import Sort
from cortex_common.errors import BadRequest, nearest_names
from cortex_common.schema.operation import Operation, OperationTarget
from cortex_common.schema.operations import OPERATIONS

FLEET_OPERATIONS: Mapping[str, Operation[Any, Any]] = {
    operation.name: operation
    for operation in OPERATIONS
    if operation.changes and operation.target is not OperationTarget.GATEWAY
}
"""The operations that can be typed, by name."""


class ScreenCommand(StrEnum):
    """Commands that change what the screen shows, not the fleet."""

    LOGS = "logs"
    FILTER = "filter"
    SORT = "sort"
    MODEL = "model"
    NODE = "node"
    THEME = "theme"
    OVERVIEW = "overview"
    MODELS = "models"
    GPUS = "gpus"
    REQUESTS = "requests"
    EVENTS = "events"
    HELP = "help"
    QUIT = "quit"


COMMAND_NAMES: tuple[str, ...] = (*FLEET_OPERATIONS, *ScreenCommand)
_SHORTCUTS = {"q": "quit", "l": "load", "u": "unload", "m": "model", "devices": "gpus"}
_NEEDS_ARGUMENT = frozenset(
    {
        name
        for name, operation in FLEET_OPERATIONS.items()
        if operation.target is not OperationTarget.FLEET
    }
    | {"logs", "sort", "model", "node", "theme"}
)


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed command line.

    Attributes:
        name: an entry of `COMMAND_NAMES`.
        argument: name of a model, node or request, words of the filter, a sort order or a theme.
        node: value of --node, or the node of --gpu.
        devices: device indices of --gpu.
    """

    name: str
    argument: str = ""
    node: str | None = None
    devices: tuple[int, ...] = ()

    @property
    def operation(self) -> Operation[Any, Any] | None:
        """The operation that the command calls; None for a `ScreenCommand`."""
        return FLEET_OPERATIONS.get(self.name)


def parse(line: str) -> Command:
    """Parse a line such as "load qwen3-32b --gpu beast/1".

    Raises:
        BadRequest: the command is unknown or incomplete.
    """
    try:
        word, *rest = shlex.split(line) or [""]
    except ValueError as error:
        raise BadRequest(str(error)) from error
    name = _SHORTCUTS.get(word, word)
    if name not in COMMAND_NAMES:
        close = nearest_names(word, COMMAND_NAMES)
        hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMAND_NAMES)}"
        raise BadRequest(f"unknown command {word!r}", hints=(hint,))
    words, node, devices = _split_options(rest)
    argument = " ".join(words)
    if name in _NEEDS_ARGUMENT and not argument:
        raise BadRequest(f"{name}: a name is required")
    if name == ScreenCommand.SORT and argument not in set(Sort):
        raise BadRequest(f"unknown sort order {argument!r}", hints=(f"orders: {', '.join(Sort)}",))
    return Command(name, argument, node, devices)


def _split_options(words: list[str]) -> tuple[list[str], str | None, tuple[int, ...]]:
    """Separate --node and --gpu from the other words."""
    arguments: list[str] = []
    node: str | None = None
    devices: list[int] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--node":
            node = next(remaining, None) or node
        elif word == "--gpu":
            name, _, index = next(remaining, "").rpartition("/")
            if not name or not index.isdigit() or node not in {None, name}:
                raise BadRequest("--gpu takes devices of one node, such as beast/0")
            node = name
            devices.append(int(index))
        else:
            arguments.append(word)
    return arguments, node, tuple(devices)
