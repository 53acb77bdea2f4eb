"""Writer of Anthropic Messages streams.

The grammar, which SDKs rely on (they index `content` by position and raise if it is violated)::

    message_start ( content_block_start content_block_delta* content_block_stop )* message_delta message_stop

One block is open at a time, with indices 0, 1, 2, ...; `ping` can occur anywhere after message_start; `error` ends the
stream at any point.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import Raw, Struct
from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.sse import write_event
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.anthropic.response import (
    SIGNATURE,
    Block,
    MessageResponse,
    MessagesUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    matched_stop_sequence,
    to_stop_reason,
    to_usage,
)
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.dialects.tool_calls import ToolCallIds

_encode = msgspec.json.encode
_PING = write_event("ping", b'{"type":"ping"}')
_PIECES_PER_PING = 64
"""Pieces of thinking that is not shown, about one per token, between two pings."""


class _MessageStart(Struct, tag_field="type", tag="message_start"):
    message: MessageResponse


class _BlockStart(Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Block


class _Delta(Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class _MessageDelta(Struct, tag_field="type", tag="message_delta"):
    delta: _Delta
    usage: MessagesUsage


class MessagesStreamWriter(StreamWriter):
    """Writes the stream of POST /v1/messages."""

    def __init__(
        self,
        *,
        message_id: str,
        model: str,
        request_id: str | None = None,
        call_ids: Collection[str] = (),
        only_first_call: bool = False,
        prompt_tokens: int = 0,
        shows_thinking: bool = True,
        stop_sequences: Sequence[str] = (),
    ) -> None:
        """Start a stream.

        Args:
            message_id: unique among responses, such as "msg_" and the request id.
            model: the name that the client sent.
            request_id: the request id in error events.
            call_ids: see `TranslatedRequest`.
            only_first_call: see `TranslatedRequest`.
            prompt_tokens: an estimate, for the start of the stream, for engines that report no usage, and for the
                error about a prompt that is too long.
            shows_thinking: whether the client asked for thinking. If not, it gets pings meanwhile.
            stop_sequences: those that the client asked for.
        """
        super().__init__(only_first_call=only_first_call)
        self._message_id = message_id
        self._model = model
        self._request_id = request_id
        self._prompt_tokens = prompt_tokens
        self._shows_thinking = shows_thinking
        self._stop_sequences = stop_sequences
        self._hidden = 0  # pieces of thinking that were not shown
        self._ids = ToolCallIds(call_ids, message_id, "toolu")
        self._open_block: Literal["text", "thinking", "tool_use"] | None = None
        self._index = -1

    @override
    def on_reasoning(self, text: str) -> None:
        if not self._shows_thinking:
            if self._hidden % _PIECES_PER_PING == 0:
                self._start()
                self._write_ping()
            self._hidden += 1
            return
        if self._open_block != "thinking":
            self._start_block("thinking", ThinkingBlock("", ""))
        self._write_delta(b'"thinking_delta","thinking":', text)

    @override
    def on_text(self, text: str) -> None:
        if self._open_block != "text":
            self._start_block("text", TextBlock(""))
        self._write_delta(b'"text_delta","text":', text)

    @override
    def on_tool_call(self, position: int, engine_id: str, name: str) -> None:
        block = ToolUseBlock(self._ids.assign(engine_id), name, Raw(b"{}"))
        self._start_block("tool_use", block)

    @override
    def on_arguments(self, text: str) -> None:
        self._write_delta(b'"input_json_delta","partial_json":', text)

    @override
    def _write_start(self) -> None:
        usage = MessagesUsage(input_tokens=self._prompt_tokens)
        empty = MessageResponse(self._message_id, "assistant", self._model, [], None, None, usage)
        self._write_event("message_start", _MessageStart(empty))

    @override
    def _write_ping(self) -> None:
        self._out += _PING

    @override
    def _write_end(self) -> None:
        reader = self._reader
        self._stop_block()
        matched = matched_stop_sequence(
            reader.stop_sequence, reader.finish_reason, self._stop_sequences
        )
        reason = to_stop_reason(
            reader.finish_reason,
            has_tool_calls=reader.has_tool_calls,
            refused=reader.refused,
            stop_sequence=matched,
        )
        stop_sequence = matched if reason == "stop_sequence" else None
        usage = to_usage(reader.usage, self._prompt_tokens)
        delta = _MessageDelta(_Delta(reason, stop_sequence), usage)
        self._write_event("message_delta", delta)
        self._out += write_event("message_stop", b'{"type":"message_stop"}')

    @override
    def _write_error(self, error: CortexError) -> None:
        _, body = error_response(error, self._request_id, prompt_tokens=self._prompt_tokens)
        self._out += write_event("error", body)

    def _start_block(
        self, block_type: Literal["text", "thinking", "tool_use"], block: Block
    ) -> None:
        self._start()
        self._stop_block()
        self._open_block = block_type
        self._index += 1
        self._write_event("content_block_start", _BlockStart(self._index, block))

    def _stop_block(self) -> None:
        if self._open_block is None:
            return
        if self._open_block == "thinking":
            self._write_delta(b'"signature_delta","signature":', SIGNATURE)
        self._open_block = None
        self._out += (
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
            % self._index
        )

    def _write_delta(self, type_and_key: bytes, text: str) -> None:
        # Formatted by hand: deltas are most of the stream, and encoding a Struct for each doubles the cost.
        self._out += (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b%b}}\n\n'
            % (self._index, type_and_key, _encode(text))
        )

    def _write_event(self, name: str, event: Struct) -> None:
        self._out += write_event(name, _encode(event))
