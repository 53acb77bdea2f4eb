"""The line of keys at the bottom."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.events import Click
from textual.screen import Screen
from textual.widget import Widget
from typing_extensions import override


class KeyLine(Widget):
    """The available keys, as many as fit; clicking a key presses it.

    Textual's footer recreates one widget per key whenever the view or the focus changes, which was most of the cost of
    such a change.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--description"}

    def __init__(self) -> None:
        super().__init__(id="keys")
        self._keys: list[tuple[str, str, str, bool]] = []

    def on_mount(self) -> None:
        """Subscribe to changes of the available keys."""
        self.screen.bindings_updated_signal.subscribe(self, self._update_keys)

    def _update_keys(self, screen: Screen[object]) -> None:
        # A terminal without focus reports fewer keys.
        if not self.app.app_focus:
            return
        keys: dict[str, tuple[str, str, str, bool]] = {}
        for _, binding, enabled, _ in screen.active_bindings.values():
            if binding.show:
                key_text = self.app.get_key_display(binding)
                keys.setdefault(
                    binding.action, (binding.key, key_text, binding.description, enabled)
                )
        if (values := list(keys.values())) != self._keys:
            self._keys = values
            self.refresh()

    @override
    def render(self) -> Text:
        key_style = self.get_component_rich_style("keys--key")
        description_style = self.get_component_rich_style("keys--description")
        line = Text(no_wrap=True)
        for key, key_text, description, enabled in self._keys:
            entry = Text.assemble(
                (f" {key_text} ", key_style), (f"{description} ", description_style)
            )
            if line.cell_len + entry.cell_len > self.size.width:
                break
            entry.stylize(Style(meta={"key": key}, dim=not enabled))
            line.append_text(entry)
        return line

    def on_click(self, event: Click) -> None:
        """Press the key under the pointer."""
        if key := event.style.meta.get("key"):
            self.app.simulate_key(key)
