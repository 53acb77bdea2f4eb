"""An engine's whole answer as Anthropic's message."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from cortex_server.dialects.chat import (
    CallPiece,
    Said,
    Usage,
    arguments_text,
    object_or_none,
)
from cortex_server.dialects.engine_errors import read_whole
from cortex_server.dialects.tool_calls import CallIds

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


def to_message(
    body: bytes,
    *,
    message_id: str,
    model: str,
    call_ids: Collection[str] = (),
    only_first_call: bool = False,
) -> bytes:
    """Say a chat completion as a message.

    Args:
        body: the engine's JSON.
        message_id: unique among answers.
        model: the name that the client sent.
        call_ids: from `Translated`.
        only_first_call: from `Translated`.

    Raises:
        CortexError: the body is an error of the engine, or no answer at all.
    """
    choice, usage = read_whole(body)
    said = choice.message or Said()
    ids = CallIds(call_ids, message_id, "toolu")
    pieces = (said.tool_calls or [])[: 1 if only_first_call else None]
    calls = [_tool_use(piece, ids) for piece in pieces]
    reason = stop_reason_of(
        choice.finish_reason,
        called=bool(calls),
        refused=bool(said.refusal),
        stop_sequence=choice.stop_sequence,
    )
    message = MessageAnswer(
        id=message_id,
        role="assistant",
        model=model,
        # One empty block when nothing was said: clients read content[0].
        content=[*_prose(said), *calls] or [TextBlock("")],
        stop_reason=reason,
        stop_sequence=choice.stop_sequence if reason == "stop_sequence" else None,
        usage=usage_of(usage),
    )
    return msgspec.json.encode(message)


def _prose(said: Said) -> Iterator[Block]:
    if said.thought:
        yield ThinkingBlock(said.thought, SIGNATURE)
    if said.text:
        yield TextBlock(said.text)
    if said.refusal:
        yield TextBlock(said.refusal)


def _tool_use(piece: CallPiece, ids: CallIds) -> Block:
    function = piece.function
    name = (function and function.name) or ""
    return ToolUseBlock(ids.take(piece.id or ""), name, _input(piece))


def _input(piece: CallPiece) -> Raw:
    """The arguments as an object, whatever the model made of them.

    A truncated object becomes an empty one, so that the tool's own checks answer the model; what is
    no object at all is kept under one key.
    """
    try:
        text = arguments_text(piece.function.arguments).strip() if piece.function else ""
    except ValueError:
        text = ""
    found = object_or_none(text)
    if found is not None:
        return found
    if not text or text.startswith("{"):
        return Raw(b"{}")
    return Raw(msgspec.json.encode({"arguments": text}))
