"""The tools of the Responses API as chat functions; namespaces are flattened, and mapped back in the answer."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import Function, Tool, ToolChoice
from cortex_server.dialects.engine_options import named_choice
from cortex_server.dialects.json_input import read

_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')


class ToolInput(Struct):
    """An entry of `tools`: a function, or a namespace of functions."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Raw = Raw()
    strict: bool | None = None
    tools: list[Raw] | None = None


class ChoiceInput(Struct):
    """A `tool_choice` that is an object."""

    type: str
    name: str = ""
    namespace: str | None = None
    mode: str = "auto"
    tools: list[Raw] | None = None


_tools = msgspec.json.Decoder(ToolInput)
_choices = msgspec.json.Decoder(ChoiceInput)
_words = msgspec.json.Decoder(str)


class FlatTools:
    """The functions of a request under flat names.

    Attributes:
        tools: as sent to the engine.
        namespaced: flat name to (namespace, name), of those that were in one.
    """

    def __init__(self, tools: Iterable[Raw], dropped: list[str]) -> None:
        self.tools: list[Tool] = []
        self.namespaced: dict[str, tuple[str, str]] = {}
        self._dropped = dropped
        for position, raw in enumerate(tools):
            self._add(raw, f"tools.{position}")

    def flat_name(self, namespace: str | None, name: str) -> str:
        """The name under which the engine knows a function."""
        return f"{namespace}__{name}" if namespace else name

    def _add(self, raw: Raw, where: str, namespace: str | None = None) -> None:
        tool = read(_tools, raw, where)
        if tool.type == "function":
            self._function(tool, where, namespace)
        elif tool.type == "namespace" and namespace is None:
            for position, inner in enumerate(tool.tools or ()):
                self._add(inner, f"{where}.tools.{position}", tool.name)
        else:
            self._dropped.append(f"{where}: tools of type {tool.type!r} have no counterpart")

    def _function(self, tool: ToolInput, where: str, namespace: str | None) -> None:
        if not tool.name:
            raise BadRequest(f"{where}.name: the tool has no name", param=f"{where}.name")
        flat = self.flat_name(namespace, tool.name)
        if namespace:
            self.namespaced[flat] = (namespace, tool.name)
        given = bytes(tool.parameters) not in {b"", b"null"}
        function = Function(
            name=flat,
            parameters=tool.parameters if given else _NO_PARAMETERS,
            description=tool.description or UNSET,
            strict=UNSET if tool.strict is None else tool.strict,
        )
        self.tools.append(Tool(function))


def choose(
    raw: Raw, flat: FlatTools, traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice | UnsetType]:
    """The tools to send and the choice among them.

    Raises:
        BadRequest: the choice is none that the API knows.
    """
    data = bytes(raw)
    if data in {b"", b"null"}:
        return flat.tools, UNSET
    if data.startswith(b'"'):
        return flat.tools, _word(read(_words, raw, "tool_choice"))
    choice = read(_choices, raw, "tool_choice")
    if choice.type == "function":
        return named_choice(flat.flat_name(choice.namespace, choice.name), flat.tools, traits)
    if choice.type == "allowed_tools":
        named = [read(_choices, tool, "tool_choice.tools") for tool in choice.tools or ()]
        allowed = {flat.flat_name(tool.namespace, tool.name) for tool in named}
        kept = [tool for tool in flat.tools if tool.function.name in allowed]
        return kept, _word(choice.mode)
    return flat.tools, "auto"  # a tool that OpenAI would run; it was dropped


def _word(word: str) -> str:
    if word not in {"auto", "none", "required"}:
        raise BadRequest(
            f"tool_choice: {word!r} is not auto, none or required", param="tool_choice"
        )
    return word
