"""How much a model shall think, in the words of each engine."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw, Struct

from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import ChatRequest, NamedFunction, Tool, ToolChoice


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


@dataclass(frozen=True, slots=True)
class Thoughts:
    """What the client asked for.

    Attributes:
        wanted: think, or don't; None leaves it to the model.
        budget_tokens: most tokens to think.
        effort: low, medium, high, xhigh, max; or another word of the client's.
    """

    wanted: bool | None = None
    budget_tokens: int | None = None
    effort: str | None = None


def apply_thoughts(chat: ChatRequest, thoughts: Thoughts, traits: EngineTraits) -> None:
    """Set the fields that say it. At most one switch is set: engines refuse contradictions."""
    if thoughts.wanted is False or thoughts.effort == "none":
        if traits.enable_thinking:
            chat.enable_thinking = False
        else:
            chat.reasoning_effort = traits.effort_names.get("none", "none")
        return
    budget = thoughts.budget_tokens
    if budget is not None and traits.thinking_budget_tokens:
        chat.thinking_budget_tokens = budget
    if thoughts.effort is not None:
        chat.reasoning_effort = traits.effort_names.get(thoughts.effort, thoughts.effort)
    elif thoughts.wanted and traits.enable_thinking:
        chat.enable_thinking = True
    elif budget is not None and not traits.thinking_budget_tokens:
        chat.reasoning_effort = _effort_of(budget)


def _effort_of(budget_tokens: int) -> str:
    """The effort nearest to a budget, for engines that know only efforts."""
    if budget_tokens < 4096:
        return "low"
    return "medium" if budget_tokens < 16384 else "high"
