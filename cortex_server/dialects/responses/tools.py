"""Translation of the tools of the Responses API to chat functions, and of their names back.

Namespaces are flattened. A custom tool, whose input is plain text, becomes a function with one parameter `input`.
Tools that are part of OpenAI's service are rejected, except those that agents such as Codex add to their own without
being asked: they are left out while there are others, and are not among the tools of the response.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import Function, Tool, ToolChoice, ToolName, unset_if_none
from cortex_server.dialects.engine_options import force_function
from cortex_server.dialects.json_input import decode

_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')
_CUSTOM_PARAMETERS = Raw(
    b'{"type":"object","properties":{"input":{"type":"string","description":"The input of the tool as plain text."}},'
    b'"required":["input"],"additionalProperties":false}'
)
_OPTIONAL = ("web_search", "image_generation", "tool_search")
"""Beginnings of the types of OpenAI's tools that agents add to their own."""

_HOSTED = {
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
}


class CustomFormat(Struct):
    """The `format` of a custom tool."""

    type: str = "text"
    syntax: str = ""
    definition: str = ""


class ToolInput(Struct):
    """An entry of `tools`: a function, a custom tool, or a namespace of both."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Raw = Raw()
    strict: bool | None = None
    format: CustomFormat | None = None
    tools: list[Raw] | None = None


class ToolChoiceInput(Struct):
    """A `tool_choice` that is an object."""

    type: str
    name: str = ""
    namespace: str | None = None
    mode: str = "auto"
    tools: list[Raw] | None = None


class _FunctionEcho(Struct, tag_field="type", tag="function"):
    """A function in a response, in which every field is required."""

    name: str
    description: str | None
    parameters: Raw
    strict: bool | None


_tools = msgspec.json.Decoder(ToolInput)
_choices = msgspec.json.Decoder(ToolChoiceInput)
_strings = msgspec.json.Decoder(str)


class FlattenedTools:
    """The tools of a request as functions under flat names.

    Args:
        tools: the tools of the request.
        dropped: receives the tools that were left out, for the log.

    Attributes:
        tools: the functions to send to the engine.
        names: flat names, mapped to the names of tools in a namespace and of custom tools.

    Raises:
        BadRequest: a tool is not supported; the message names its type.
    """

    def __init__(self, tools: Iterable[Raw], dropped: list[str]) -> None:
        self.tools: list[Tool] = []
        self.names: dict[str, ToolName] = {}
        self._hosted: list[tuple[str, str]] = []
        for position, raw in enumerate(tools):
            self._add(raw, f"tools.{position}")
        for path, tool_type in self._hosted:
            if not self.tools:
                raise _not_supported(tool_type, path)
            dropped.append(f"{path}: tools of type {tool_type!r} are not supported")

    def flat_name(self, namespace: str | None, name: str) -> str:
        """Return the name under which the engine knows a tool."""
        return f"{namespace}__{name}" if namespace else name

    def _add(self, raw: Raw, path: str, namespace: str | None = None) -> None:
        tool = decode(_tools, raw, path)
        if tool.type == "namespace" and namespace is None:
            for position, inner in enumerate(tool.tools or ()):
                self._add(inner, f"{path}.tools.{position}", tool.name)
        elif tool.type in {"function", "custom"}:
            self._add_function(tool, path, namespace)
        elif tool.type.startswith(_OPTIONAL):
            self._hosted.append((path, tool.type))
        else:
            raise _not_supported(tool.type, path)

    def _add_function(self, tool: ToolInput, path: str, namespace: str | None) -> None:
        if not tool.name:
            raise BadRequest(f"{path}.name: the tool has no name", param=f"{path}.name")
        flat_name = self.flat_name(namespace, tool.name)
        is_custom = tool.type == "custom"
        if namespace or is_custom:
            self.names[flat_name] = ToolName(tool.name, namespace or None, custom=is_custom)
        if is_custom:
            function = Function(flat_name, _CUSTOM_PARAMETERS, _custom_description(tool))
        else:
            has_parameters = bytes(tool.parameters) not in {b"", b"null"}
            function = Function(
                name=flat_name,
                parameters=tool.parameters if has_parameters else _NO_PARAMETERS,
                description=tool.description or UNSET,
                strict=unset_if_none(tool.strict),
            )
        self.tools.append(Tool(function))


def echo_tools(tools: Iterable[Raw]) -> list[Raw]:
    """Return the tools of a request as they are in its response: those that the model gets."""
    return [
        Raw(echo)
        for position, raw in enumerate(tools)
        if (echo := _echo(raw, f"tools.{position}")) is not None
    ]


def _echo(raw: Raw, path: str) -> bytes | None:
    tool = decode(_tools, raw, path)
    if tool.type.startswith(_OPTIONAL):
        return None
    if tool.type != "function":
        return bytes(raw)
    parameters = tool.parameters if bytes(tool.parameters) else Raw(b"null")
    return msgspec.json.encode(_FunctionEcho(tool.name, tool.description, parameters, tool.strict))


def translate_tool_choice(
    raw: Raw, flattened: FlattenedTools, traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice | UnsetType]:
    """Return the tools to send and the tool choice, in a form that the engine accepts.

    Raises:
        BadRequest: the choice is not valid, or names a tool that the model does not get.
    """
    data = bytes(raw)
    if data in {b"", b"null"}:
        return flattened.tools, UNSET
    if data.startswith(b'"'):
        mode = _check_mode(decode(_strings, raw, "tool_choice"))
        if mode == "required" and not flattened.tools:
            raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        return flattened.tools, mode
    choice = decode(_choices, raw, "tool_choice")
    if choice.type in {"function", "custom"}:
        name = flattened.flat_name(choice.namespace, choice.name)
        if all(tool.function.name != name for tool in flattened.tools):
            raise BadRequest(f"tool_choice: there is no tool {name!r}", param="tool_choice")
        return force_function(name, flattened.tools, traits)
    if choice.type == "allowed_tools":
        named = [decode(_choices, tool, "tool_choice.tools") for tool in choice.tools or ()]
        allowed = {flattened.flat_name(tool.namespace, tool.name) for tool in named}
        kept = [tool for tool in flattened.tools if tool.function.name in allowed]
        mode = _check_mode(choice.mode)
        if mode == "required" and not kept:
            raise BadRequest("tool_choice: none of these tools exists", param="tool_choice")
        return kept, mode
    raise _not_supported(choice.type, "tool_choice")


def _custom_description(tool: ToolInput) -> str | UnsetType:
    """Return the description of a custom tool with its grammar, which engines can't enforce."""
    parts = [tool.description or ""]
    if tool.format is not None and tool.format.definition:
        parts.append(f"The input must match this {tool.format.syntax} grammar:")
        parts.append(tool.format.definition)
    return "\n\n".join(part for part in parts if part) or UNSET


def _not_supported(tool_type: str, path: str) -> BadRequest:
    hosted = tool_type in _HOSTED or tool_type.startswith(_OPTIONAL)
    reason = "they are part of OpenAI's service" if hosted else "the type is unknown"
    return BadRequest(
        f"{path}: tools of type {tool_type!r} are not supported: {reason}",
        param=path,
        hints=("Declare a tool of type function, and run it in your program.",),
    )


def _check_mode(mode: str) -> str:
    if mode not in {"auto", "none", "required"}:
        raise BadRequest(
            f"tool_choice: {mode!r} is not auto, none or required", param="tool_choice"
        )
    return mode
