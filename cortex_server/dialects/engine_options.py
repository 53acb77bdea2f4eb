"""Request options that engines spell differently: a forced tool, and how much to think."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw, Struct

from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import ChatRequest, FunctionName, Tool, ToolChoice


class _Named(Struct):
    name: str = ""


class _NamedFunction(Struct):
    function: _Named = msgspec.field(default_factory=_Named)


_bodies = msgspec.json.Decoder(dict[str, Raw])
_named_functions = msgspec.json.Decoder(_NamedFunction)
_arrays = msgspec.json.Decoder(list[Raw])


def force_function(
    name: str, tools: list[Tool], traits: EngineTraits
) -> tuple[list[Tool], str | ToolChoice]:
    """Return the tools and the tool choice that make the model call one function.

    The choice is "auto" if the function is not among the tools, because it was dropped.
    """
    only = [tool for tool in tools if tool.function.name == name]
    if not only:
        return tools, "auto"
    if traits.named_tool_choice:
        return tools, ToolChoice(FunctionName(name))
    return only, "required"


def without_named_tool_choice(body: bytes) -> bytes:
    """Rewrite a chat request for an engine without named tool choices: "required", with only the named tool.

    A body without a named choice, or one that the engine will reject with its own message, is returned unchanged.
    """
    if body.find(b'"tool_choice"') < 0:
        return body
    try:
        fields = _bodies.decode(body)
        name = _named_functions.decode(fields["tool_choice"]).function.name
        tools = _arrays.decode(fields["tools"])
        only = [tool for tool in tools if _named_functions.decode(tool).function.name == name]
    except (KeyError, ValueError):
        return body
    if not only:
        return body
    changes = {"tools": Raw(msgspec.json.encode(only)), "tool_choice": Raw(b'"required"')}
    return msgspec.json.encode(fields | changes)


@dataclass(frozen=True, slots=True)
class ThinkingOptions:
    """How much the client wants the model to think.

    Attributes:
        enabled: whether to think; None leaves it to the model.
        budget_tokens: the most tokens to spend on thinking.
        effort: "low", "medium", "high", "xhigh", "max", or any other value that the client sent.
    """

    enabled: bool | None = None
    budget_tokens: int | None = None
    effort: str | None = None


def apply_thinking(chat: ChatRequest, options: ThinkingOptions, traits: EngineTraits) -> None:
    """Set the thinking fields that the engine supports.

    At most one of `enable_thinking` and `reasoning_effort` is set, because engines reject contradictions.
    """
    if options.enabled is False or options.effort == "none":
        if traits.enable_thinking:
            chat.enable_thinking = False
        else:
            chat.reasoning_effort = traits.effort_names.get("none", "none")
        return
    budget = options.budget_tokens
    if budget is not None and traits.thinking_budget_tokens:
        chat.thinking_budget_tokens = budget
    if options.effort is not None:
        chat.reasoning_effort = traits.effort_names.get(options.effort, options.effort)
    elif options.enabled and traits.enable_thinking:
        chat.enable_thinking = True
    elif budget is not None and not traits.thinking_budget_tokens:
        chat.reasoning_effort = _nearest_effort(budget)


def _nearest_effort(budget_tokens: int) -> str:
    """Return the effort closest to a budget, for engines without thinking budgets."""
    if budget_tokens < 4096:
        return "low"
    return "medium" if budget_tokens < 16384 else "high"
