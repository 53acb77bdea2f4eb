"""The two themes of cortex, and access to colors of the current theme."""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.theme import Theme

from cortex_cli.tui.bars import PALETTE
from cortex_common.errors import BadRequest, nearest_names

_DARK = ("#7aa2f7", "#9ece6a", "#e0af68", "#bb9af7", "#7dcfff", "#f7768e", "#73daca", "#ff9e64")
_LIGHT = ("#2e5fbf", "#3f7a1c", "#8a5a00", "#7a3fb5", "#0b7285", "#b4233c", "#0b7a63", "#b34d00")

DARK = Theme(
    name="cortex-dark",
    primary="#7aa2f7",
    secondary="#7dcfff",
    accent="#bb9af7",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    foreground="#c8d3f5",
    background="#16161e",
    surface="#1a1b26",
    panel="#24283b",
    dark=True,
    variables={f"model-{i}": _DARK[i] for i in range(PALETTE)},
)
LIGHT = Theme(
    name="cortex-light",
    primary="#2e5fbf",
    secondary="#0b7285",
    accent="#7a3fb5",
    success="#3f7a1c",
    warning="#8a5a00",
    error="#b4233c",
    foreground="#1f2335",
    background="#f5f6fa",
    surface="#ffffff",
    panel="#e4e7f0",
    dark=False,
    variables={f"model-{i}": _LIGHT[i] for i in range(PALETTE)},
)


def apply_theme(app: App[Any], name: str) -> None:
    """Apply a theme of cortex or of Textual.

    Raises:
        BadRequest: there is no such theme.
    """
    for theme in (DARK, LIGHT):
        app.register_theme(theme)
    themes = app.available_themes
    if name not in themes:
        close = nearest_names(name, themes)
        hint = f"did you mean {close[0]!r}?" if close else f"themes: {', '.join(sorted(themes))}"
        raise BadRequest(f"unknown theme {name!r}", hints=(hint,))
    app.theme = name


def theme_color(app: App[Any], name: str) -> str:
    """Return a color of the current theme, such as "error", in Rich's notation."""
    # Rich has no prefix for the terminal's own colors, which some themes use.
    return app.theme_variables[name].removeprefix("ansi_")


def model_color(app: App[Any], index: int) -> str:
    """Return a color of the model palette from the current theme."""
    # Textual's own themes define no model colors.
    return app.theme_variables.get(f"model-{index}") or _DARK[index]
