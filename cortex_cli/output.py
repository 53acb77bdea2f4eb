"""Output of commands: data to stdout, messages to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cortex_cli.client import fetch_fleet, run
from cortex_cli.color import Colors, colors_for
from cortex_cli.render.output_format import ListKind, OutputFormat, format_items
from cortex_cli.terminal import write_err, write_out
from cortex_cli.watch import watch
from cortex_common.schema.fleet import FleetSnapshot

Item = TypeVar("Item")


def notify(text: str) -> None:
    """Write a message for people to stderr."""
    write_err(f"{text}\n")


def stdout_colors() -> Colors:
    """Return the colors for stdout."""
    return colors_for(sys.stdout, os.environ)


def stdout_width() -> int | None:
    """Return the width of the terminal that stdout is; None for a pipe or a file, where nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def stderr_colors() -> Colors:
    """Return the colors for stderr."""
    return colors_for(sys.stderr, os.environ)


def write_item(kind: ListKind[Item], item: Item, output: OutputFormat, text: str) -> None:
    """Write a single item: `text` in tabular formats, otherwise a list with one element."""
    content = text if output.tabular else format_items(kind, [item], output, colors=stdout_colors())
    write_out(f"{content}\n")


def write_items(
    kind: ListKind[Item],
    items: Sequence[Item],
    output: OutputFormat,
    *,
    headers: bool = True,
    total: int = 0,
) -> None:
    """Write a list; in tabular formats an empty one is a message.

    Args:
        kind: how the items are listed.
        items: the items.
        output: the format.
        headers: whether a table has a header.
        total: number of items before filtering, for the message.
    """
    text = format_items(
        kind, items, output, colors=stdout_colors(), headers=headers, max_width=stdout_width()
    )
    if text:
        write_out(f"{text}\n")
    elif output.tabular:
        notify(no_matches(total) if total else kind.empty_text)


def no_matches(total: int) -> str:
    """Return the message for a filter that matches none of `total` items."""
    return f"no matches ({total} total)"


def list_fleet(
    kind: ListKind[Item],
    select: Callable[[FleetSnapshot], Sequence[Item]],
    *,
    gateway: str | None,
    output: OutputFormat,
    headers: bool,
    watching: bool,
    count: Callable[[FleetSnapshot], int] = lambda _fleet: 0,
) -> None:
    """Write items of the fleet, once or at each change.

    Args:
        kind: how the items are listed.
        select: returns the items of a snapshot.
        gateway: URL or context.
        output: the format.
        headers: whether a table has a header.
        watching: whether to write again at each change until interrupted.
        count: returns the number of items before filtering.
    """
    if watching:
        colors = stdout_colors()

        def draw(fleet: FleetSnapshot) -> str:
            return format_items(
                kind,
                select(fleet),
                output.streaming,
                colors=colors,
                headers=headers,
                max_width=stdout_width(),
            )

        run(watch(gateway, draw, kind.empty_text))
        return
    fleet = run(fetch_fleet(gateway))
    write_items(kind, select(fleet), output, headers=headers, total=count(fleet))
