"""Request options that engines spell differently: a forced tool, how much to think, and the length of the response."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import (
    ChatRequest,
    FunctionName,
    ThinkingSwitch,
    Tool,
    ToolChoice,
)

_NO_REASONING = "(not shown)"

_REASONING_MODEL = re.compile(
    r"(?:.*/)?(?:(?P<o>o[1-9])(?:-.*)?|gpt-(?P<gpt>[5-9](?:\.\d+)?)(?!-chat)(?:-.*)?)"
)
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_EFFORTS_BY_FAMILY = {
    "o": ("low", "medium", "high"),
    "5": ("minimal", "low", "medium", "high"),
    "5.1": ("none", "low", "medium", "high"),
}
_LATEST_EFFORTS = ("none", "low", "medium", "high", "xhigh")
"""`reasoning_effort` of GPT-5.2 and later."""


class _Named(Struct):
    name: str = ""


class _NamedFunction(Struct):
    function: _Named = msgspec.field(default_factory=_Named)


_bodies = msgspec.json.Decoder(dict[str, Raw])
_named_functions = msgspec.json.Decoder(_NamedFunction)
_effort_texts = msgspec.json.Decoder(str | None)
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
    except (KeyError, ValueError, RecursionError):
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


def apply_options(chat: ChatRequest, options: ThinkingOptions, traits: EngineTraits) -> list[str]:
    """Word a translated request for its engine; return the fields that had to be left out, for the log."""
    if traits.thinking_type:
        _apply_thinking_type(chat, options)
    else:
        _apply_thinking(chat, options, traits)
    dropped = [] if traits.top_k else _drop(chat, "top_k")
    if traits.openai_reasoning_models and is_openai_reasoning_model(chat.model):
        dropped += _adapt_to_openai_reasoning(chat)
    if traits.requires_reasoning:
        _add_missing_reasoning(chat)
    return dropped


def _drop(chat: ChatRequest, *names: str) -> list[str]:
    dropped = [name for name in names if getattr(chat, name) is not UNSET]
    for name in dropped:
        setattr(chat, name, UNSET)
    return [f"{name}: the engine rejects it" for name in dropped]


def _add_missing_reasoning(chat: ChatRequest) -> None:
    """Give each turn with tool calls a reasoning; clients that show none don't send it back."""
    for message in chat.messages:
        if message.tool_calls is not UNSET and message.reasoning_content is UNSET:
            message.reasoning_content = _NO_REASONING


def _apply_thinking_type(chat: ChatRequest, options: ThinkingOptions) -> None:
    if options.enabled is False or options.effort == "none":
        chat.thinking = ThinkingSwitch("disabled")
    elif options.enabled or options.effort is not None:
        chat.thinking = ThinkingSwitch("enabled")


def _apply_thinking(chat: ChatRequest, options: ThinkingOptions, traits: EngineTraits) -> None:
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


@lru_cache(maxsize=1024)
def is_openai_reasoning_model(model: str) -> bool:
    """Return whether a name is that of one of OpenAI's reasoning models: the o series, and GPT-5 and later."""
    return _REASONING_MODEL.fullmatch(model) is not None


def for_openai_reasoning_model(body: bytes, model: str) -> bytes:
    """Word a chat request of an OpenAI client for one of OpenAI's reasoning models.

    These reject `max_tokens`, `top_k` and values of `reasoning_effort` that they do not know. Other fields are left to
    the server and its own message, and a body that the server will reject in any case is returned unchanged.
    """
    if not any(name in body for name in (b'"max_tokens"', b'"top_k"', b'"reasoning_effort"')):
        return body
    try:
        fields = _bodies.decode(body)
        effort = _effort_texts.decode(fields.get("reasoning_effort", Raw(b"null")))
    except (ValueError, RecursionError):
        return body
    fields.pop("top_k", None)
    if (limit := fields.pop("max_tokens", None)) is not None:
        fields.setdefault("max_completion_tokens", limit)
    if effort is not None:
        known = _known_effort(model, effort)
        if known is UNSET:
            del fields["reasoning_effort"]
        else:
            fields["reasoning_effort"] = Raw(msgspec.json.encode(known))
    return msgspec.json.encode(fields)


def _adapt_to_openai_reasoning(chat: ChatRequest) -> list[str]:
    chat.max_completion_tokens, chat.max_tokens = chat.max_tokens, UNSET
    if isinstance(chat.reasoning_effort, str):
        chat.reasoning_effort = _known_effort(chat.model, chat.reasoning_effort)
    return _drop(chat, "temperature", "top_p")


def _known_effort(model: str, effort: str) -> str | UnsetType:
    """Return the effort closest to the requested one among those that the model knows."""
    match = _REASONING_MODEL.fullmatch(model)
    assert match is not None
    known = _EFFORTS_BY_FAMILY.get(match["gpt"] or "o", _LATEST_EFFORTS)
    requested = "xhigh" if effort == "max" else effort
    if requested not in _EFFORTS:
        return UNSET
    position = _EFFORTS.index(requested)
    return min(known, key=lambda name: abs(_EFFORTS.index(name) - position))
