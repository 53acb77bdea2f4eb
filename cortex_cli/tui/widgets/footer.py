"""The keys at the bottom."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.events import Click
from textual.screen import Screen
from textual.widget import Widget


class KeyLine(Widget):
    """What can be done here and now, as much as fits; a click on it is as good as its key.

    Textual's footer has a widget for each key and makes them all anew when the view or the focus changes; that was most
    of what such a change cost.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--told"}

    def __init__(self) -> None:
        super().__init__(id="keys")
        self._offers: list[tuple[str, str, str, bool]] = []

    def on_mount(self) -> None:
        """Keep up with what can be done."""
        self.screen.bindings_updated_signal.subscribe(self, self._look)

    def _look(self, screen: Screen[object]) -> None:
        # A terminal that somebody turned away from has no focus, and with that fewer keys.
        if not self.app.app_focus:
            return
        offers: dict[str, tuple[str, str, str, bool]] = {}
        for _, binding, enabled, _ in screen.active_bindings.values():
            if binding.show:
                shown = self.app.get_key_display(binding)
                offers.setdefault(
                    binding.action, (binding.key, shown, binding.description, enabled)
                )
        if (found := list(offers.values())) != self._offers:
            self._offers = found
            self.refresh()

    def render(self) -> Text:
        """Each key with what it does, until the next has no room."""
        key_style = self.get_component_rich_style("keys--key")
        told_style = self.get_component_rich_style("keys--told")
        line = Text(no_wrap=True)
        for key, shown, told, enabled in self._offers:
            offer = Text.assemble((f" {shown} ", key_style), (f"{told} ", told_style))
            if line.cell_len + offer.cell_len > self.size.width:
                break
            offer.stylize(Style(meta={"key": key}, dim=not enabled))
            line.append_text(offer)
        return line

    def on_click(self, event: Click) -> None:
        """Do what the pointer is on."""
        if key := event.style.meta.get("key"):
            self.app.simulate_key(key)
