"""Key bindings of `cortex top` as data. Lower-case keys do not disturb requests, except those that ask first."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual.binding import Binding, BindingType

from cortex_cli.tui.commands import COMMAND_NAMES
from cortex_common.errors import ConfigError, nearest_names
from cortex_common.schema.operations import OPERATIONS

_KEY_LABELS = {
    "slash": "/",
    "colon": ":",
    "question_mark": "?",
    "plus": "+",
    "minus": "-",
    "escape": "esc",
}


def _key(keys: str, action: str, description: str, *, in_footer: bool = False) -> Binding:
    return Binding(keys, action, description, show=in_footer, id=action.replace("_", "-"))


KEYS: list[BindingType] = [
    # First, so that the narrowest screen shows it: it leads to all others.
    _key("question_mark", "keys", "keys", in_footer=True),
    _key("l", "load", "load", in_footer=True),
    _key("u", "unload", "unload", in_footer=True),
    _key("p", "pin", "pin", in_footer=True),
    _key("e", "evict", "evict", in_footer=True),
    _key("c", "cordon", "cordon the node"),
    _key("D", "defrag", "defrag", in_footer=True),
    _key("X", "cancel", "cancel the request", in_footer=True),
    _key("L", "logs", "logs", in_footer=True),
    _key("d,enter", "describe", "describe", in_footer=True),
    _key("slash", "filter", "filter", in_footer=True),
    _key("s", "sort", "sort", in_footer=True),
    _key("S", "reverse", "reverse the order"),
    _key("space", "mark", "mark"),
    _key("y", "json", "show as JSON"),
    _key("f", "freeze", "freeze", in_footer=True),
    _key("r", "redraw", "redraw"),
    _key("plus", "faster", "draw more often"),
    _key("minus", "slower", "draw less often"),
    _key("z", "zoom", "models only"),
    _key("colon", "command", "command", in_footer=True),
    _key("escape", "leave", "back"),
    Binding("1", "view('overview')", "overview", show=False, id="view-overview"),
    Binding("2", "view('models')", "models", show=False, id="view-models"),
    Binding("3", "view('gpus')", "devices", show=False, id="view-gpus"),
    Binding("4", "view('requests')", "requests", show=False, id="view-requests"),
    Binding("5", "view('events')", "events", show=False, id="view-events"),
    Binding("j,down", "move(1)", "down", show=False, id="down"),
    Binding("k,up", "move(-1)", "up", show=False, id="up"),
    _key("q", "quit", "quit", in_footer=True),
]

FLEET_ACTIONS = frozenset(operation.name for operation in OPERATIONS if operation.changes)
"""Actions that a read-only screen refuses."""

LEGEND = (
    ("*", "pinned: never evicted or unloaded when idle"),
    ("+", "marked: the next action applies to all marked models"),
    ("c", "the node is cordoned: no new instances are placed on it"),
    ("2+3", "under Q: two requests in flight and three waiting"),
    ("█ ▓", "memory of a model, and memory of a load in progress; # + with --ascii"),
    ("▒ ░", "other memory, and reserved memory; x . with --ascii"),
    ("▞", "memory that a plan would take; / with --ascii"),
)
"""Symbols on the screen and their meaning."""

_NO_MODELS = frozenset({"gpus", "requests", "events"})
VIEWS_WITHOUT = {
    **dict.fromkeys(("load", "unload", "pin", "evict", "cordon", "mark", "json"), _NO_MODELS),
    **dict.fromkeys(("sort", "reverse"), _NO_MODELS),
    "describe": frozenset({"gpus", "events"}),
    "logs": frozenset({"gpus"}),
    "cancel": frozenset({"overview", "models", "gpus", "events"}),
}
"""Views in which an action is unavailable because what it would apply to is not visible, by action."""


def availability(action: str, view: str, *, can_operate: bool) -> bool | None:
    """Return whether an action can be used in a view.

    Returns:
        False to hide it because the view shows nothing that it applies to, None to grey it because operations are
        impossible now, True otherwise.
    """
    if view in VIEWS_WITHOUT.get(action, ()):
        return False
    return None if action in FLEET_ACTIONS and not can_operate else True


def validate_keymap(keymap: Mapping[str, str]) -> Mapping[str, str]:
    """Check the keys that a user configured.

    Args:
        keymap: keys by action, such as {"load": "ctrl+l"}; for the names see docs/reference/keys.md.

    Raises:
        ConfigError: there is no action of that name.
    """
    names = {b.id for b in KEYS if isinstance(b, Binding) and b.id}
    for name in keymap:
        if name not in names:
            close = nearest_names(name, names)
            hint = f"did you mean {close[0]!r}?" if close else f"names: {', '.join(sorted(names))}"
            raise ConfigError(f"[keys] {name}: not an action of `cortex top`", hints=(hint,))
    return keymap


def key_rows() -> list[tuple[str, str, str]]:
    """Return each binding as (keys, description, name in [keys] of the client's configuration)."""
    return [
        (
            ", ".join(_KEY_LABELS.get(k, k) for k in binding.key.split(",")),
            binding.description,
            binding.id or "",
        )
        for binding in KEYS
        if isinstance(binding, Binding)
    ]


def keys_text() -> Text:
    """Return all keys with their descriptions, the commands, and the legend."""
    text = Text()
    for keys, description, _ in key_rows():
        text.append(f"{keys:>10}  ", style="bold")
        text.append(f"{description}\n")
    text.append("\nafter `:`  ", style="bold")
    text.append(f"{', '.join(COMMAND_NAMES)}\n\n")
    for symbol, meaning in LEGEND:
        text.append(f"{symbol:>10}  ", style="bold")
        text.append(f"{meaning}\n")
    return text
