"""The keys at the bottom."""

from __future__ import annotations

from textual.widgets import Footer


class KeyLine(Footer):
    """Textual's footer, which would hold all keys that it ever showed: some fifty with each change of the view."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=False)

    async def recompose(self) -> None:
        """See `Widget.recompose`."""
        await super().recompose()
        # Keys that are gone still follow this, until it is told anew.
        self.mutate_reactive(Footer.compact)
