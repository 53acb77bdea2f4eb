"""The line after ":" as data. Pure; words are those of the command `cortex`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum

from cortex_cli.tui.view import Sort
from cortex_common.errors import BadRequest, nearest_names


class Verb(StrEnum):
    """What can be said."""

    LOAD = "load"
    UNLOAD = "unload"
    EVICT = "evict"
    PIN = "pin"
    UNPIN = "unpin"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    DEFRAG = "defrag"
    CANCEL = "cancel"
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


_SHORT = {"q": Verb.QUIT, "l": Verb.LOAD, "u": Verb.UNLOAD, "m": Verb.MODEL, "devices": Verb.GPUS}
_ON_NAME = {
    Verb.LOAD,
    Verb.UNLOAD,
    Verb.EVICT,
    Verb.PIN,
    Verb.UNPIN,
    Verb.CORDON,
    Verb.UNCORDON,
    Verb.DRAIN,
    Verb.CANCEL,
}
CHANGES_FLEET = _ON_NAME | {Verb.DEFRAG}
_TAKES_NAME = _ON_NAME | {Verb.MODEL, Verb.NODE, Verb.LOGS, Verb.THEME, Verb.SORT}


@dataclass(frozen=True, slots=True)
class Command:
    """One line, understood.

    Attributes:
        argument: a model, the filter's words, an order or a theme.
        node, devices: of --node and --gpu.
    """

    verb: Verb
    argument: str = ""
    node: str | None = None
    devices: tuple[int, ...] = ()


def parse(line: str) -> Command:
    """Understand a line such as "load qwen3-32b --gpu beast/1".

    Raises:
        BadRequest: there is no such command, or something is missing.
    """
    try:
        word, *rest = shlex.split(line) or [""]
    except ValueError as failed:
        raise BadRequest(str(failed)) from failed
    verb = _SHORT.get(word) or next((v for v in Verb if v == word), None)
    if verb is None:
        close = nearest_names(word, list(Verb))
        hint = f"did you mean {close[0]}?" if close else f"say one of {', '.join(Verb)}"
        raise BadRequest(f"there is no command {word!r}", hints=(hint,))
    words, node, devices = _options(rest)
    argument = " ".join(words)
    if verb in _TAKES_NAME and not argument:
        raise BadRequest(f"{verb}: say which")
    if verb is Verb.SORT and argument not in set(Sort):
        raise BadRequest(f"sort by one of {', '.join(Sort)}")
    return Command(verb, argument, node, devices)


def _options(words: list[str]) -> tuple[list[str], str | None, tuple[int, ...]]:
    plain: list[str] = []
    node: str | None = None
    devices: list[int] = []
    left = iter(words)
    for word in left:
        if word == "--node":
            node = next(left, None) or node
        elif word == "--gpu":
            name, _, index = next(left, "").rpartition("/")
            if not name or not index.isdigit() or node not in {None, name}:
                raise BadRequest("--gpu takes devices of one node, like beast/0")
            node = name
            devices.append(int(index))
        else:
            plain.append(word)
    return plain, node, tuple(devices)
