"""The shapes of Anthropic's answers, shared by the whole answer and the stream.

Source: `Message` and its stream events as typed in the anthropic SDK; which keys it requires decided what is
always present here.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct

from cortex_server.dialects.chat import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]

SIGNATURE = "cortex"
"""Stands where Anthropic signs its thinking: the SDKs require text, and clients send it back untouched."""


class TextBlock(Struct, tag_field="type", tag="text"):
    """A block of text."""

    text: str


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """A block of thinking."""

    thinking: str
    signature: str


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call of a tool; `input` is always an object."""

    id: str
    name: str
    input: Raw


Block = TextBlock | ThinkingBlock | ToolUseBlock


class AnthropicUsage(Struct):
    """Tokens; `input_tokens` leaves out what the cache gave, unlike OpenAI's count."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageAnswer(Struct, tag_field="type", tag="message"):
    """The answer of POST /v1/messages."""

    id: str
    role: str
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: AnthropicUsage


def usage_of(usage: Usage | None) -> AnthropicUsage:
    """An engine's count in Anthropic's terms; zeros when the engine did not count."""
    if usage is None:
        return AnthropicUsage()
    return AnthropicUsage(
        input_tokens=usage.prompt - usage.cached,
        output_tokens=usage.completion,
        cache_read_input_tokens=usage.cached,
    )


def stop_reason_of(
    finish_reason: str | None, *, called: bool, refused: bool, stop_sequence: str | None
) -> StopReason:
    """Why the answer ended.

    A call wins over "stop", because engines say "stop" after calls and clients would end their loop;
    "length" wins over everything, because the last call may be cut.
    """
    if finish_reason == "length":
        return "max_tokens"
    if called:
        return "tool_use"
    if finish_reason == "content_filter" or refused:
        return "refusal"
    return "stop_sequence" if stop_sequence is not None else "end_turn"
