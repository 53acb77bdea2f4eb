"""How a command writes its data: one listing, six formats, always to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from cortex_cli.client import connect, run
from cortex_cli.color import Paint, paint_for
from cortex_cli.render.formats import to_yaml
from cortex_cli.render.json_values import to_plain
from cortex_cli.render.table import Column, table
from cortex_cli.watch import watch
from cortex_common.schema.fleet import FleetSnapshot

Item = TypeVar("Item")

API_VERSION = "cortex/v1"


class Output(StrEnum):
    """Formats of a listing."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


def live(output: Output) -> Output:
    """The format for what goes on: nobody can read a document that never ends, but one object a line."""
    return Output.JSONL if output in {Output.JSON, Output.YAML} else output


@dataclass(frozen=True, slots=True)
class Kind(Generic[Item]):
    """One kind of thing that commands list.

    Attributes:
        kind: as JSON and YAML name the list, such as "ModelList".
        columns: of the table.
        name: what `-o name` prints of an item.
        nothing: what a table says on stderr when there are no items.
        shown: what JSON shows of an item, `to_plain` applied; the whole of it unless told otherwise.
    """

    kind: str
    columns: Sequence[Column[Item]]
    name: Callable[[Item], str]
    nothing: str
    shown: Callable[[Item], Any] = lambda item: item


def as_text(
    kind: Kind[Item],
    items: Sequence[Item],
    output: Output,
    *,
    paint: Paint,
    headers: bool = True,
) -> str:
    """The items in a format, without the last newline; empty for an empty table."""
    match output:
        case Output.TABLE | Output.WIDE:
            if not items:
                return ""
            wide = output is Output.WIDE
            return table(kind.columns, items, paint=paint, headers=headers, wide=wide)
        case Output.NAME:
            return "\n".join(kind.name(item) for item in items)
        case Output.JSONL:
            return "\n".join(_line(to_plain(kind.shown(item))) for item in items)
        case Output.JSON | Output.YAML:
            return document(kind.kind, output, items=[kind.shown(item) for item in items])


def document(kind: str, output: Output, **parts: Any) -> str:
    """One document as indented JSON, as YAML, or in any other format as JSON on one line.

    Args:
        kind: what it is, such as "Status".
        output: the format.
        parts: what is in it; see `to_plain`.
    """
    found = {"apiVersion": API_VERSION, "kind": kind, **to_plain(parts)}
    match output:
        case Output.JSON:
            return json.dumps(found, indent=2, ensure_ascii=False)
        case Output.YAML:
            return to_yaml(found)
        case _:
            return _line(found)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


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
