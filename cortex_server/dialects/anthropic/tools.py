"""Translation of Anthropic's tools and tool choice to OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import Function, Tool, ToolChoice, unset_if_none
from cortex_server.dialects.engine_options import force_function
from cortex_server.dialects.json_input import decode


class ToolInput(Struct):
    """An entry of `tools`; fields such as cache_control and defer_loading are not read, and so not forwarded."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET
    strict: bool | None = None


class ToolChoiceInput(Struct):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Schema(Struct):
    type: Raw | UnsetType = UNSET


_tools = msgspec.json.Decoder(ToolInput)
_schemas = msgspec.json.Decoder(_Schema)

_SERVER_TOOL = re.compile(
    r"(web_search|web_fetch|code_execution|tool_search_tool|advisor)_\w+|mcp_toolset|computer_toolset_\d+"
)
"""Types of tools that Anthropic runs."""
_CLIENT_TOOL = re.compile(r"(bash|text_editor|memory)_\d+")
"""Types of tools that the client runs and whose schema Anthropic's models know."""

_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}
_INTEGERS = {"type": "array", "items": {"type": "integer"}}


def _command_schema(commands: Sequence[str], fields: dict[str, object]) -> Raw:
    properties = {"command": {"type": "string", "enum": list(commands)}, **fields}
    schema = {"type": "object", "properties": properties, "required": ["command"]}
    return Raw(msgspec.json.encode(schema))


_CLIENT_TOOLS: dict[str, tuple[str, Raw]] = {
    "bash": (
        "Run a command in a persistent shell; restart starts a new shell.",
        Raw(
            msgspec.json.encode(
                {
                    "type": "object",
                    "properties": {"command": _STRING, "restart": {"type": "boolean"}},
                }
            )
        ),
    ),
    "text_editor": (
        "View, create and edit files.",
        _command_schema(
            ("view", "create", "str_replace", "insert", "undo_edit"),
            {
                "path": _STRING,
                "file_text": _STRING,
                "old_str": _STRING,
                "new_str": _STRING,
                "insert_line": _INTEGER,
                "insert_text": _STRING,
                "view_range": _INTEGERS,
            },
        ),
    ),
    "memory": (
        "Keep notes in files under /memories.",
        _command_schema(
            ("view", "create", "str_replace", "insert", "delete", "rename"),
            {
                "path": _STRING,
                "file_text": _STRING,
                "old_str": _STRING,
                "new_str": _STRING,
                "insert_line": _INTEGER,
                "insert_text": _STRING,
                "old_path": _STRING,
                "new_path": _STRING,
                "view_range": _INTEGERS,
            },
        ),
    ),
}
"""Description and public schema of the client tools."""


def translate_tool(raw: Raw, path: str) -> Tool | str:
    """Translate a tool to a function; return the type of one that Anthropic runs, which is to be dropped.

    Raises:
        BadRequest: the tool has neither a schema nor a known type.
    """
    tool = decode(_tools, raw, path)
    tool_type = tool.type or "custom"
    schema = tool.input_schema
    description: str | UnsetType = tool.description or UNSET
    if tool_type != "custom" and _SERVER_TOOL.fullmatch(tool_type):
        return tool_type
    if schema is UNSET:
        match = _CLIENT_TOOL.fullmatch(tool_type)
        if match is None:
            raise BadRequest(
                f"{path}: a tool of type {tool_type!r} requires an input_schema", param=path
            )
        default_description, schema = _CLIENT_TOOLS[match[1]]
        description = description or default_description
    if not tool.name:
        raise BadRequest(f"{path}.name: the tool has no name", param=f"{path}.name")
    schema = _with_type(schema, path)
    return Tool(Function(tool.name, schema, description, unset_if_none(tool.strict)))


def translate_tool_choice(
    choice: ToolChoiceInput | None, tools: list[Tool], traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice | UnsetType]:
    """Return the tools to send and the tool choice, in a form that the engine accepts.

    Raises:
        BadRequest: the choice has no tool name.
    """
    if choice is None or not tools:
        return tools, UNSET
    if choice.type != "tool":
        return tools, {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if not choice.name:
        raise BadRequest("tool_choice.name: the name is missing", param="tool_choice.name")
    return force_function(choice.name, tools, traits)


def _with_type(schema: Raw, path: str) -> Raw:
    """Return the schema verbatim, adding the type "object", which engines require, if it has none."""
    data = bytes(schema).strip()
    if decode(_schemas, schema, f"{path}.input_schema").type is not UNSET:
        return schema
    rest = data[1:].lstrip()
    return Raw(b'{"type":"object"' + (b"" if rest.startswith(b"}") else b",") + rest)
