"""Making the model call one certain function, in the words of each engine."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from cortex_server.dialects.chat import NamedFunction, Tool, ToolChoice
from cortex_server.dialects.engine_traits import EngineTraits


class _Named(Struct):
    name: str = ""


class _Function(Struct):
    function: _Named = msgspec.field(default_factory=_Named)


_bodies = msgspec.json.Decoder(dict[str, Raw])
_functions = msgspec.json.Decoder(_Function)
_lists = msgspec.json.Decoder(list[Raw])


def named_choice(
    name: str, tools: list[Tool], traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice]:
    """Make the model call one function; "auto" when it is not among the tools (it was dropped)."""
    only = [tool for tool in tools if tool.function.name == name]
    if not only:
        return tools, "auto"
    if traits.named_tool_choice:
        return tools, ToolChoice(NamedFunction(name))
    return only, "required"


def without_named_choice(body: bytes) -> bytes:
    """A chat request for an engine that takes no named choice: "required", with only that tool.

    A body without one, or one that the engine is to refuse in its own words, stays as it is.
    """
    if body.find(b'"tool_choice"') < 0:
        return body
    try:
        fields = _bodies.decode(body)
        name = _functions.decode(fields["tool_choice"]).function.name
        tools = _lists.decode(fields["tools"])
        only = [tool for tool in tools if _functions.decode(tool).function.name == name]
    except (KeyError, ValueError):
        return body
    if not only:
        return body
    changes = {"tools": Raw(msgspec.json.encode(only)), "tool_choice": Raw(b'"required"')}
    return msgspec.json.encode(fields | changes)
