"""The line that is always visible, and the banner below it."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cortex_cli.tui.theme import ink
from cortex_cli.tui.view import Summary
from cortex_cli.tui.view_state import LOST


class SummaryLine(Static):
    """The fleet in one line; the least important facts go first when it is narrow."""

    def show(self, summary: Summary, where: str, mode: str) -> None:
        """Draw it.

        Args:
            summary: what there is to say.
            where: the gateway or the recording.
            mode: see `Known.mode`.
        """
        # In the order in which they stand, each with its rank: those of a low rank are the last to go.
        facts = [
            (where, 7),
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
        line.append(" cortex ", style=f"bold {ink(self.app, 'primary')}")
        # What was last seen may have been healthy; nobody knows how it is now.
        sign = "?" if mode == LOST else "!" if summary.troubles else "ok"
        line.append(f"{sign} ", style=ink(self.app, "success" if sign == "ok" else "warning"))
        tail = f" {mode} "
        room = self.size.width - len(line) - len(tail) - 1
        kept = set()
        for fact, _ in sorted(facts, key=lambda f: f[1]):
            if room >= len(fact) + 2:
                kept.add(fact)
                room -= len(fact) + 2
        for fact, _ in facts:
            line.append(f" {fact} " if fact in kept else "")
        line.append(" " * max(0, room))
        line.append(tail, style="bold" if mode == "live" else f"bold {ink(self.app, 'warning')}")
        self.update(line, layout=False)
