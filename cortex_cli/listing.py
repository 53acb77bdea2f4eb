"""The one shape of all `ls` commands: ask the gateway, pick the items, write them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cortex_cli.client import connect, run
from cortex_cli.color import Paint, paint_for
from cortex_cli.output import Kind, Output, as_text, live
from cortex_cli.watch import watch
from cortex_common.schema.fleet import FleetSnapshot

Item = TypeVar("Item")


def stdout_paint() -> Paint:
    """Colour for what goes to stdout."""
    return paint_for(sys.stdout, os.environ)


def write_one(kind: Kind[Item], item: Item, output: Output, text: str) -> None:
    """Write a thing by itself: the text for people, or a listing of it alone for programs."""
    people = output in {Output.TABLE, Output.WIDE}
    found = text if people else as_text(kind, [item], output, paint=stdout_paint())
    sys.stdout.write(f"{found}\n")


def stderr_paint() -> Paint:
    """Colour for what goes to stderr."""
    return paint_for(sys.stderr, os.environ)


def say(text: str) -> None:
    """Tell the person something that is no data."""
    sys.stderr.write(f"{text}\n")


def list_fleet(
    kind: Kind[Item],
    select: Callable[[FleetSnapshot], Sequence[Item]],
    *,
    gateway: str | None,
    output: Output,
    headers: bool,
    watching: bool,
    among: Callable[[FleetSnapshot], int] = lambda _fleet: 0,
) -> None:
    """Write the items of the fleet that a command is about, once or at each change.

    `among` says of how many they are picked, for whoever gets none.
    """
    paint = stdout_paint()
    if watching:
        run(
            watch(
                gateway,
                lambda s: as_text(kind, select(s), live(output), paint=paint, headers=headers),
                kind.nothing,
            )
        )
        return
    fleet = run(_fleet(gateway))
    items = select(fleet)
    text = as_text(kind, items, output, paint=paint, headers=headers)
    if text:
        sys.stdout.write(f"{text}\n")
    elif output in {Output.TABLE, Output.WIDE}:
        say(f"none of the {of} fits" if (of := among(fleet)) else kind.nothing)


async def _fleet(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()
