"""Making the model call one certain function, in the words of each engine."""

from __future__ import annotations

from cortex_server.dialects.chat import NamedFunction, Tool, ToolChoice
from cortex_server.dialects.traits import EngineTraits


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
