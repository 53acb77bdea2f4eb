"""The line that is always visible, and the banner below it."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cortex_cli.tui.view import Summary


class SummaryLine(Static):
    """The fleet in one line; the least important facts go first when it is narrow."""

    def show(self, summary: Summary, where: str, mode: str) -> None:
        """Draw it.

        Args:
            summary: what there is to say.
            where: the gateway or the recording.
            mode: "live", "frozen", "lost" or "replay".
        """
        healthy = not summary.troubles
        facts = [
            f"nodes {summary.nodes}",
            f"models {summary.models}",
            f"VRAM {summary.memory}",
            f"{summary.requests} req/s",
            f"{summary.tokens} tok/s",
            f"queue {summary.queue}",
            f"err {summary.errors}",
            f"gpus {summary.devices}",
        ]
        theme = self.app.theme_variables
        line = Text()
        line.append(" cortex ", style=f"bold {theme['primary']}")
        line.append("ok " if healthy else "! ", style=theme["success" if healthy else "warning"])
        tail = f" {mode} "
        room = self.size.width - len(line) - len(tail) - 1
        for fact in [where, *facts]:
            if room < len(fact) + 2:
                break
            line.append(f" {fact} ")
            room -= len(fact) + 2
        line.append(" " * max(0, room))
        line.append(tail, style="bold" if mode == "live" else f"bold {theme['warning']}")
        self.update(line, layout=False)
