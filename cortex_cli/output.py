"""How a command writes its data: one listing, six formats, always to stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from cortex_cli.paint import Paint
from cortex_cli.render.table import Column, table
from cortex_cli.render.yaml import to_yaml

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


@dataclass(frozen=True, slots=True)
class Kind(Generic[Item]):
    """One kind of thing that commands list.

    Attributes:
        kind: as JSON and YAML name the list, such as "ModelList".
        plain: an item as JSON has it.
        columns: of the table.
        name: what `-o name` prints of an item.
        nothing: what a table says on stderr when there are no items.
    """

    kind: str
    plain: Callable[[Item], Any]
    columns: Sequence[Column[Item]]
    name: Callable[[Item], str]
    nothing: str


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
            return "\n".join(json.dumps(kind.plain(item), ensure_ascii=False) for item in items)
        case Output.JSON:
            return json.dumps(_document(kind, items), indent=2, ensure_ascii=False)
        case Output.YAML:
            return to_yaml(_document(kind, items))


def _document(kind: Kind[Item], items: Sequence[Item]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": kind.kind,
        "items": [kind.plain(item) for item in items],
    }
