"""Confirmation dialogs and pages of text on top of the main screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static
from typing_extensions import override


class Confirm(ModalScreen[bool]):
    """A yes-or-no question; the Cancel button has the focus.

    Args:
        question: the question.
        details: consequences of a yes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape", "answer(False)", "no"),
        Binding("left,right,h,l", "app.focus_next", "other button", show=False),
    ]

    def __init__(self, question: str, details: Sequence[str] = ()) -> None:
        super().__init__()
        self._question = question
        self._details = details

    @override
    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Text(self._question, style="bold"))
            yield Static(Text("\n".join(self._details), style="dim"))
            with Horizontal(classes="buttons"):
                yield Button("Cancel (n)", id="no", compact=True)
                yield Button("OK (y)", id="yes", variant="warning", compact=True)

    def on_mount(self) -> None:
        """Focus the safe answer, so that enter gives it."""
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Dismiss with the answer of the button."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Dismiss with the answer of the key."""
        self.dismiss(answer)


class Page(ModalScreen[None]):
    """A scrollable page of text.

    Args:
        title: title in the border.
        text: content.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,d,y", "app.pop_screen", "close"),
        Binding("j", "scroll(1)", "down", show=False),
        Binding("k", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, title: str, text: Text) -> None:
        super().__init__()
        self._title = title
        self._text = text

    @override
    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="page") as frame:
            frame.border_title = Text(self._title).markup
            frame.border_subtitle = "esc closes"
            yield Static(self._text)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines, for j and k."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def facts_page(title: str, facts: Sequence[tuple[str, str]]) -> Page:
    """Return a page of names and values."""
    return Page(title, facts_text(facts))


def facts_text(facts: Sequence[tuple[str, str]]) -> Text:
    """Format names and values as two columns."""
    width = max((len(name) for name, _ in facts), default=0)
    text = Text()
    for name, value in facts:
        text.append(f"{name:<{width}}  ", style="dim")
        text.append(f"{value}\n")
    return text
