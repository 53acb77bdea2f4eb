"""Types of Anthropic's message responses, and the translation of an unstreamed chat completion to one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import UpstreamFailed
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import (
    AssistantMessage,
    ToolCallDelta,
    arguments_object,
    arguments_text,
)
from cortex_server.dialects.engine_errors import first_choice
from cortex_server.dialects.finish_reasons import FinishKind
from cortex_server.dialects.tool_calls import ToolCallIds
from cortex_server.dialects.usage import Usage

StopReason = str
"""One of "end_turn", "max_tokens", "stop_sequence", "tool_use" and "refusal", or an engine's own word."""

SIGNATURE = "cortex"
"""Signature of thinking blocks: SDKs require a string, and clients send it back unchanged."""


class TextBlock(Struct, tag_field="type", tag="text"):
    """A text block."""

    text: str


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """A thinking block."""

    thinking: str
    signature: str


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A tool call; `input` is always an object."""

    id: str
    name: str
    input: Raw


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessagesUsage(Struct):
    """Token counts; unlike OpenAI's, `input_tokens` excludes cached tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageResponse(Struct, tag_field="type", tag="message"):
    """The response of POST /v1/messages."""

    id: str
    role: str
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


def to_message(
    body: bytes,
    *,
    message_id: str,
    model: str,
    call_ids: Collection[str] = (),
    only_first_call: bool = False,
    shows_thinking: bool = True,
    stop_sequences: Sequence[str] = (),
    prompt_tokens: int = 0,
) -> bytes:
    """Translate an unstreamed chat completion to a message.

    Args:
        body: the engine's JSON.
        message_id: unique among responses.
        model: the name that the client sent.
        call_ids: see `TranslatedRequest`.
        only_first_call: see `TranslatedRequest`.
        shows_thinking: whether the client asked for thinking.
        stop_sequences: those that the client asked for.
        prompt_tokens: an estimate, for engines that report no usage.

    Raises:
        CortexError: the body is an error of the engine, or not a chat completion.
    """
    choice, usage = first_choice(body)
    message = choice.message or AssistantMessage()
    ids = ToolCallIds(call_ids, message_id, "toolu")
    calls = (message.tool_calls or [])[: 1 if only_first_call else None]
    tool_uses = [_tool_use(call, ids) for call in calls]
    stop_sequence = matched_stop_sequence(
        choice.stop_sequence, choice.finish_reason, stop_sequences
    )
    stop_reason = to_stop_reason(
        choice.finish_reason,
        has_tool_calls=bool(tool_uses),
        refused=bool(message.refusal),
        stop_sequence=stop_sequence,
    )
    texts = _text_blocks(message, shows_thinking=shows_thinking)
    response = MessageResponse(
        id=message_id,
        role="assistant",
        model=model,
        # At least one block, even if empty, because clients read content[0].
        content=[*texts, *tool_uses] or [TextBlock("")],
        stop_reason=stop_reason,
        stop_sequence=stop_sequence if stop_reason == "stop_sequence" else None,
        usage=to_usage(usage, prompt_tokens),
    )
    return msgspec.json.encode(response)


def to_usage(usage: Usage | None, prompt_tokens: int = 0) -> MessagesUsage:
    """Translate an engine's usage; if it reported none, the input is an estimate and the output is zero."""
    if usage is None:
        return MessagesUsage(input_tokens=prompt_tokens)
    return MessagesUsage(
        input_tokens=usage.prompt - usage.cached,
        output_tokens=usage.completion,
        cache_read_input_tokens=usage.cached,
    )


def matched_stop_sequence(
    reported: str | None, finish_reason: str | None, asked: Sequence[str]
) -> str | None:
    """Return the stop sequence that ended a response, if it can be known.

    It must be one that the client asked for: engines also report those of the model's chat template. Where an engine
    says only that there was one (text-generation-inference), it is known if the client asked for no other.
    """
    if reported in asked:
        return reported
    return asked[0] if finish_reason == "stop_sequence" and len(asked) == 1 else None


def to_stop_reason(
    finish_reason: str | None, *, has_tool_calls: bool, refused: bool, stop_sequence: str | None
) -> StopReason:
    """Translate a finish reason.

    A tool call takes precedence over "stop", because some engines report "stop" after calls, on which clients would
    end their agent loop; a cut takes precedence over everything, because the last call can be truncated. A word that is
    not known is passed on: it can mean that the response is not complete.
    """
    kind = finish_reasons.classify(finish_reason or "stop")
    if kind is FinishKind.CUT:
        return "max_tokens"
    if has_tool_calls:
        return "tool_use"
    if kind is FinishKind.REFUSED or refused:
        return "refusal"
    if kind is FinishKind.UNKNOWN:
        return str(finish_reason)
    return "stop_sequence" if stop_sequence is not None else "end_turn"


def _text_blocks(message: AssistantMessage, *, shows_thinking: bool) -> Iterator[Block]:
    if message.reasoning_text and shows_thinking:
        yield ThinkingBlock(message.reasoning_text, SIGNATURE)
    if message.text:
        yield TextBlock(message.text)
    if message.refusal:
        yield TextBlock(message.refusal)


def _tool_use(call: ToolCallDelta, ids: ToolCallIds) -> Block:
    function = call.function
    name = (function and function.name) or ""
    try:
        arguments = arguments_text(function.arguments) if function else ""
    except ValueError:
        raise UpstreamFailed(f"The arguments of the call of {name!r} are not text") from None
    return ToolUseBlock(ids.assign(call.id or ""), name, arguments_object(arguments))
