"""Anthropic's tools and tool choice as OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import Function, Tool, ToolChoice
from cortex_server.dialects.engine_options import named_choice
from cortex_server.dialects.json_input import read


class AnthropicTool(Struct):
    """An entry of `tools`; caching, deferral and the like are not read, so they go no further."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET
    strict: bool | None = None


class AnthropicChoice(Struct):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Schema(Struct):
    type: Raw | UnsetType = UNSET


_tools = msgspec.json.Decoder(AnthropicTool)
_schemas = msgspec.json.Decoder(_Schema)

_SERVER_RUN = re.compile(
    r"(web_search|web_fetch|code_execution|tool_search_tool|advisor)_\w+|mcp_toolset|computer_toolset_\d+"
)
_CLIENT_RUN = re.compile(r"(bash|text_editor|memory)_\d+")

_TEXT = {"type": "string"}
_RANGE = {"type": "array", "items": {"type": "integer"}}
_LINE = {"type": "integer"}


def _commands(names: Sequence[str], fields: dict[str, object]) -> Raw:
    properties = {"command": {"type": "string", "enum": list(names)}, **fields}
    schema = {"type": "object", "properties": properties, "required": ["command"]}
    return Raw(msgspec.json.encode(schema))


# The public schemas of tools that Anthropic's models know by type and that clients run.
_KNOWN: dict[str, tuple[str, Raw]] = {
    "bash": (
        "Run a command in a shell that keeps its state; restart starts a new shell.",
        Raw(
            msgspec.json.encode(
                {"type": "object", "properties": {"command": _TEXT, "restart": {"type": "boolean"}}}
            )
        ),
    ),
    "text_editor": (
        "View, create and edit files.",
        _commands(
            ("view", "create", "str_replace", "insert", "undo_edit"),
            {
                "path": _TEXT,
                "file_text": _TEXT,
                "old_str": _TEXT,
                "new_str": _TEXT,
                "insert_line": _LINE,
                "insert_text": _TEXT,
                "view_range": _RANGE,
            },
        ),
    ),
    "memory": (
        "Keep notes in files under /memories.",
        _commands(
            ("view", "create", "str_replace", "insert", "delete", "rename"),
            {
                "path": _TEXT,
                "file_text": _TEXT,
                "old_str": _TEXT,
                "new_str": _TEXT,
                "insert_line": _LINE,
                "insert_text": _TEXT,
                "old_path": _TEXT,
                "new_path": _TEXT,
                "view_range": _RANGE,
            },
        ),
    ),
}


def tool(raw: Raw, where: str) -> Tool | str:
    """One tool as a function; or, when it runs on Anthropic's side, its type, to be dropped.

    Raises:
        BadRequest: the tool has neither a schema nor a type that is known.
    """
    found = read(_tools, raw, where)
    kind = found.type or "custom"
    schema = found.input_schema
    description: str | UnsetType = found.description or UNSET
    if kind != "custom" and _SERVER_RUN.fullmatch(kind):
        return kind
    if schema is UNSET:
        match = _CLIENT_RUN.fullmatch(kind)
        if match is None:
            raise BadRequest(
                f"{where}: a tool of type {kind!r} needs an input_schema here", param=where
            )
        known, schema = _KNOWN[match[1]]
        description = description or known
    if not found.name:
        raise BadRequest(f"{where}.name: the tool has no name", param=f"{where}.name")
    strict = UNSET if found.strict is None else found.strict
    return Tool(Function(found.name, _with_type(schema, where), description, strict))


def choose(
    choice: AnthropicChoice | None, tools: list[Tool], traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice | UnsetType]:
    """The tools to send and the choice among them, in words that the engine understands.

    Raises:
        BadRequest: the choice names no tool.
    """
    if choice is None or not tools:
        return tools, UNSET
    if choice.type != "tool":
        return tools, {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if not choice.name:
        raise BadRequest("tool_choice.name: the choice names no tool", param="tool_choice.name")
    return named_choice(choice.name, tools, traits)


def _with_type(schema: Raw, where: str) -> Raw:
    """The schema verbatim, with the "object" that engines insist on where it is missing."""
    data = bytes(schema).strip()
    place = f"{where}.input_schema"
    if read(_schemas, schema, place).type is not UNSET:
        return schema
    rest = data[1:].lstrip()
    return Raw(b'{"type":"object"' + (b"" if rest.startswith(b"}") else b",") + rest)
