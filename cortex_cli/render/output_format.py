"""Lists and documents in the formats of `-o`: tables, JSON, YAML, names. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from cortex_cli.color import Colors
from cortex_cli.render.formats import to_yaml
from cortex_cli.render.json_values import to_plain
from cortex_cli.render.table import Column, table
from cortex_cli.terminal import escape_unsafe, neutralize_line

Item = TypeVar("Item")

API_VERSION = "cortex/v1"


class OutputFormat(StrEnum):
    """Values of `-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"

    @property
    def tabular(self) -> bool:
        """Whether the output is for people."""
        return self in {OutputFormat.TABLE, OutputFormat.WIDE}

    @property
    def streaming(self) -> OutputFormat:
        """The format for an endless stream: one JSON object per line in place of a document."""
        return OutputFormat.JSONL if self in {OutputFormat.JSON, OutputFormat.YAML} else self


@dataclass(frozen=True, slots=True)
class ListKind(Generic[Item]):
    """How one kind of item is listed.

    Attributes:
        kind: `kind` of the list in JSON and YAML, such as "ModelList".
        columns: columns of the table.
        name: returns what `-o name` prints for an item.
        empty_text: message on stderr in place of an empty table.
        to_json: returns the value that JSON shows for an item; `to_plain` is applied to it.
    """

    kind: str
    columns: Sequence[Column[Item]]
    name: Callable[[Item], str]
    empty_text: str
    to_json: Callable[[Item], Any] = lambda item: item


def format_items(
    kind: ListKind[Item],
    items: Sequence[Item],
    output: OutputFormat,
    *,
    colors: Colors,
    headers: bool = True,
    max_width: int | None = None,
) -> str:
    """Return the items in a format, without a final newline; empty for an empty table. For `max_width`, see `table`."""
    match output:
        case OutputFormat.TABLE | OutputFormat.WIDE:
            if not items:
                return ""
            wide = output is OutputFormat.WIDE
            return table(
                kind.columns, items, colors=colors, headers=headers, wide=wide, max_width=max_width
            )
        case OutputFormat.NAME:
            return "\n".join(neutralize_line(kind.name(item)) for item in items)
        case OutputFormat.JSONL:
            return "\n".join(_json_line(to_plain(kind.to_json(item))) for item in items)
        case OutputFormat.JSON | OutputFormat.YAML:
            return format_document(kind.kind, output, items=[kind.to_json(item) for item in items])


def format_document(kind: str, output: OutputFormat, **fields: Any) -> str:
    """Return one document as indented JSON, as YAML, or in any other format as JSON on one line.

    Args:
        kind: `kind` of the document, such as "Status".
        output: the format.
        fields: further fields; `to_plain` is applied to them.
    """
    document = {"apiVersion": API_VERSION, "kind": kind, **to_plain(fields)}
    match output:
        case OutputFormat.JSON:
            return escape_unsafe(json.dumps(document, indent=2, ensure_ascii=False))
        case OutputFormat.YAML:
            return to_yaml(document)
        case _:
            return _json_line(document)


def _json_line(value: Any) -> str:
    return escape_unsafe(json.dumps(value, ensure_ascii=False))
