"""The keys of `cortex top` as data: what each does, and where it is told. Lower case disturbs nobody's requests."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual.binding import Binding, BindingType

from cortex_cli.tui.commands import Verb
from cortex_common.errors import ConfigError, nearest_names

_NAMES = {
    "slash": "/",
    "colon": ":",
    "question_mark": "?",
    "plus": "+",
    "minus": "-",
    "escape": "esc",
}
SHOWN = True
HIDDEN = False


def _key(keys: str, action: str, told: str, *, shown: bool = HIDDEN) -> Binding:
    return Binding(keys, action, told, show=shown, id=action.replace("_", "-"))


KEYS: list[BindingType] = [
    # First, so that the narrowest screen shows it: whoever sees it finds all others.
    _key("question_mark", "keys", "keys", shown=SHOWN),
    _key("l", "load", "load", shown=SHOWN),
    _key("u", "unload", "unload", shown=SHOWN),
    _key("p", "pin", "pin", shown=SHOWN),
    _key("e", "evict", "evict", shown=SHOWN),
    _key("c", "cordon", "cordon the node"),
    _key("D", "defrag", "defrag", shown=SHOWN),
    _key("X", "cancel", "cancel the request", shown=SHOWN),
    _key("L", "logs", "logs", shown=SHOWN),
    _key("d,enter", "describe", "describe", shown=SHOWN),
    _key("slash", "filter", "filter", shown=SHOWN),
    _key("s", "sort", "sort", shown=SHOWN),
    _key("S", "reverse", "turn the order round"),
    _key("space", "mark", "mark"),
    _key("y", "json", "show as JSON"),
    _key("f", "freeze", "freeze", shown=SHOWN),
    _key("r", "redraw", "draw now"),
    _key("plus", "faster", "draw more often"),
    _key("minus", "slower", "draw less often"),
    _key("z", "zoom", "models alone"),
    _key("colon", "command", "command", shown=SHOWN),
    _key("escape", "leave", "back"),
    Binding("1", "view('overview')", "overview", show=False, id="view-overview"),
    Binding("2", "view('models')", "models", show=False, id="view-models"),
    Binding("3", "view('gpus')", "devices", show=False, id="view-gpus"),
    Binding("4", "view('requests')", "requests", show=False, id="view-requests"),
    Binding("5", "view('events')", "events", show=False, id="view-events"),
    Binding("j,down", "move(1)", "down", show=False, id="down"),
    Binding("k,up", "move(-1)", "up", show=False, id="up"),
    _key("q", "quit", "quit", shown=SHOWN),
]

DISTURBING = frozenset(
    {"load", "unload", "pin", "evict", "cordon", "uncordon", "drain", "defrag", "cancel"}
)
"""Actions that a read-only screen refuses."""

SIGNS = (
    ("*", "pinned: never evicted, never unloaded for being idle"),
    ("+", "marked: the next action falls on all that are"),
    ("c", "its node is cordoned: nothing new is placed there"),
    ("2+3", "under Q: two requests under way and three that wait"),
    ("█ ▓", "a model's memory, and what a load under way will have; with --ascii # +"),
    ("▒ ░", "memory of others, and what is promised; with --ascii x ."),
    ("▞", "what a plan would take; with --ascii /"),
)
"""What stands on the screen for what."""

_NO_MODELS = frozenset({"gpus", "requests", "events"})
VIEWS_WITHOUT = {
    **dict.fromkeys(("load", "unload", "pin", "evict", "cordon", "mark", "json"), _NO_MODELS),
    **dict.fromkeys(("sort", "reverse"), _NO_MODELS),
    "describe": frozenset({"gpus", "events"}),
    "logs": frozenset({"gpus"}),
    "cancel": frozenset({"overview", "models", "gpus", "events"}),
}
"""Actions on something under the cursor, and the views that show no such thing: nobody acts on what can't be seen."""


def remapped(wanted: Mapping[str, str]) -> Mapping[str, str]:
    """The keys that an operator wants, by what they do.

    Args:
        wanted: such as {"load": "ctrl+l"}; names as in docs/reference/keys.md.

    Raises:
        ConfigError: nothing goes by such a name.
    """
    known = {b.id for b in KEYS if isinstance(b, Binding) and b.id}
    for name in wanted:
        if name not in known:
            close = nearest_names(name, known)
            hint = f"did you mean {close[0]!r}?" if close else f"names: {', '.join(sorted(known))}"
            raise ConfigError(f"[keys] {name}: no key of `cortex top` goes by that", hints=(hint,))
    return wanted


def key_rows() -> list[tuple[str, str, str]]:
    """Each binding as (keys, what it does, its name for [keys] of the client's configuration)."""
    return [
        (
            ", ".join(_NAMES.get(k, k) for k in binding.key.split(",")),
            binding.description,
            binding.id or "",
        )
        for binding in KEYS
        if isinstance(binding, Binding)
    ]


def keys_text() -> Text:
    """All keys with what they do, and the words of the command line."""
    text = Text()
    for names, told, _ in key_rows():
        text.append(f"{names:>10}  ", style="bold")
        text.append(f"{told}\n")
    text.append("\nafter `:`  ", style="bold")
    text.append(f"{', '.join(Verb)}\n\n")
    for sign, told in SIGNS:
        text.append(f"{sign:>10}  ", style="bold")
        text.append(f"{told}\n")
    return text
