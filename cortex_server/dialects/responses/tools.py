"""Translation of the tools of the Responses API to chat functions.

Namespaces are flattened, and the names are mapped back in the response.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import Function, Tool, ToolChoice, unset_if_none
from cortex_server.dialects.engine_options import force_function
from cortex_server.dialects.json_input import decode

_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')


class ToolInput(Struct):
    """An entry of `tools`: a function, or a namespace of functions."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Raw = Raw()
    strict: bool | None = None
    tools: list[Raw] | None = None


class ToolChoiceInput(Struct):
    """A `tool_choice` that is an object."""

    type: str
    name: str = ""
    namespace: str | None = None
    mode: str = "auto"
    tools: list[Raw] | None = None


_tools = msgspec.json.Decoder(ToolInput)
_choices = msgspec.json.Decoder(ToolChoiceInput)
_strings = msgspec.json.Decoder(str)


class FlattenedTools:
    """The functions of a request under flat names.

    Args:
        tools: the tools of the request.
        dropped: receives the tools that were left out, for the log.

    Attributes:
        tools: the tools to send to the engine.
        names: flat names, mapped to (namespace, name), of functions in a namespace.
    """

    def __init__(self, tools: Iterable[Raw], dropped: list[str]) -> None:
        self.tools: list[Tool] = []
        self.names: dict[str, tuple[str, str]] = {}
        self._dropped = dropped
        for position, raw in enumerate(tools):
            self._add(raw, f"tools.{position}")

    def flat_name(self, namespace: str | None, name: str) -> str:
        """Return the name under which the engine knows a function."""
        return f"{namespace}__{name}" if namespace else name

    def _add(self, raw: Raw, path: str, namespace: str | None = None) -> None:
        tool = decode(_tools, raw, path)
        if tool.type == "function":
            self._add_function(tool, path, namespace)
        elif tool.type == "namespace" and namespace is None:
            for position, inner in enumerate(tool.tools or ()):
                self._add(inner, f"{path}.tools.{position}", tool.name)
        else:
            self._dropped.append(f"{path}: tools of type {tool.type!r} are not supported")

    def _add_function(self, tool: ToolInput, path: str, namespace: str | None) -> None:
        if not tool.name:
            raise BadRequest(f"{path}.name: the tool has no name", param=f"{path}.name")
        flat_name = self.flat_name(namespace, tool.name)
        if namespace:
            self.names[flat_name] = (namespace, tool.name)
        has_parameters = bytes(tool.parameters) not in {b"", b"null"}
        function = Function(
            name=flat_name,
            parameters=tool.parameters if has_parameters else _NO_PARAMETERS,
            description=tool.description or UNSET,
            strict=unset_if_none(tool.strict),
        )
        self.tools.append(Tool(function))


def translate_tool_choice(
    raw: Raw, flattened: FlattenedTools, traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice | UnsetType]:
    """Return the tools to send and the tool choice, in a form that the engine accepts.

    Raises:
        BadRequest: the choice is not valid.
    """
    data = bytes(raw)
    if data in {b"", b"null"}:
        return flattened.tools, UNSET
    if data.startswith(b'"'):
        return flattened.tools, _check_mode(decode(_strings, raw, "tool_choice"))
    choice = decode(_choices, raw, "tool_choice")
    if choice.type == "function":
        name = flattened.flat_name(choice.namespace, choice.name)
        return force_function(name, flattened.tools, traits)
    if choice.type == "allowed_tools":
        named = [decode(_choices, tool, "tool_choice.tools") for tool in choice.tools or ()]
        allowed = {flattened.flat_name(tool.namespace, tool.name) for tool in named}
        kept = [tool for tool in flattened.tools if tool.function.name in allowed]
        return kept, _check_mode(choice.mode)
    return flattened.tools, "auto"  # a tool that OpenAI runs, which was dropped


def _check_mode(mode: str) -> str:
    if mode not in {"auto", "none", "required"}:
        raise BadRequest(
            f"tool_choice: {mode!r} is not auto, none or required", param="tool_choice"
        )
    return mode
