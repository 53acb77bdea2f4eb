"""The summary line, which is always visible."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cortex_cli.tui.theme import theme_color
from cortex_cli.tui.view import Summary
from cortex_cli.tui.view_state import LOST


class SummaryLine(Static):
    """The fleet in one line; narrow terminals drop the least important facts."""

    def show(self, summary: Summary, source: str, mode: str) -> None:
        """Draw the line.

        Args:
            summary: the facts.
            source: name of the gateway or the recording.
            mode: see `Frame.mode`.
        """
        # In display order, each with its rank: the highest ranks are dropped first.
        facts = [
            (source, 7),
            (f"nodes {summary.nodes}", 0),
            (f"models {summary.models}", 4),
            (f"VRAM {summary.memory}", 1),
            (f"{summary.requests} req/s", 3),
            (f"{summary.tokens} tok/s", 6),
            (f"queue {summary.queue}", 2),
            (f"err {summary.errors}", 5),
            (f"gpus {summary.devices}", 8),
        ]
        line = Text()
        line.append(" cortex ", style=f"bold {theme_color(self.app, 'primary')}")
        # While the gateway is lost, the health of the fleet is unknown.
        sign = "?" if mode == LOST else "!" if summary.problems else "ok"
        line.append(
            f"{sign} ", style=theme_color(self.app, "success" if sign == "ok" else "warning")
        )
        tail = f" {mode} "
        available = self.size.width - len(line) - len(tail) - 1
        kept = set()
        for fact, _ in sorted(facts, key=lambda f: f[1]):
            if available >= len(fact) + 2:
                kept.add(fact)
                available -= len(fact) + 2
        for fact, _ in facts:
            line.append(f" {fact} " if fact in kept else "")
        line.append(" " * max(0, available))
        line.append(
            tail, style="bold" if mode == "live" else f"bold {theme_color(self.app, 'warning')}"
        )
        self.update(line, layout=False)
