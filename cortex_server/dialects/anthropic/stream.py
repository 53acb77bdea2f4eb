"""Writes an engine's chat stream as a stream of Anthropic's Messages API.

The grammar, which the SDKs rely on (they index `content` by position and raise when it breaks)::

    message_start ( content_block_start content_block_delta* content_block_stop )* message_delta message_stop

one block open at a time, indices 0, 1, 2, ...; `ping` anywhere after message_start; `error` ends it at any point.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import CortexError
from cortex_http.sse import write_event
from cortex_server.dialects.anthropic.errors import error_body
from cortex_server.dialects.anthropic.response import (
    SIGNATURE,
    AnthropicUsage,
    Block,
    MessageAnswer,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    stop_reason_of,
    usage_of,
)
from cortex_server.dialects.stream.writer import ClientStream
from cortex_server.dialects.tool_calls import CallIds

_encode = msgspec.json.encode
_PING = write_event("ping", b'{"type":"ping"}')


class _MessageStart(Struct, tag_field="type", tag="message_start"):
    message: MessageAnswer


class _BlockStart(Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Block


class _Ending(Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class _MessageDelta(Struct, tag_field="type", tag="message_delta"):
    delta: _Ending
    usage: AnthropicUsage


class MessagesStream(ClientStream):
    """POST /v1/messages, streamed."""

    def __init__(
        self,
        *,
        message_id: str,
        model: str,
        request_id: str | None = None,
        call_ids: Collection[str] = (),
        only_first_call: bool = False,
        prompt_tokens: int = 0,
    ) -> None:
        """Start a stream.

        Args:
            message_id: unique among answers, such as "msg_" and the request's id.
            model: the name that the client sent.
            request_id: put into error events.
            call_ids: from `Translated`.
            only_first_call: from `Translated`.
            prompt_tokens: an estimate, for the error of a prompt that is too long.
        """
        super().__init__(only_first_call=only_first_call)
        self._message_id = message_id
        self._model = model
        self._request_id = request_id
        self._prompt_tokens = prompt_tokens
        self._ids = CallIds(call_ids, message_id, "toolu")
        self._open: Literal["text", "thinking", "tool_use"] | None = None
        self._index = -1

    def reasoning(self, text: str) -> None:
        """See ChatSink."""
        if self._open != "thinking":
            self._begin("thinking", ThinkingBlock("", ""))
        self._delta(b'"thinking_delta","thinking":', text)

    def text(self, text: str) -> None:
        """See ChatSink."""
        if self._open != "text":
            self._begin("text", TextBlock(""))
        self._delta(b'"text_delta","text":', text)

    def call_started(self, number: int, engine_id: str, name: str) -> None:  # noqa: ARG002 - the sink's signature
        """See CallSink."""
        self._begin("tool_use", ToolUseBlock(self._ids.take(engine_id), name, Raw(b"{}")))

    def call_arguments(self, text: str) -> None:
        """See CallSink."""
        self._delta(b'"input_json_delta","partial_json":', text)

    def _write_start(self) -> None:
        empty = MessageAnswer(
            self._message_id, "assistant", self._model, [], None, None, AnthropicUsage()
        )
        self._event("message_start", _MessageStart(empty))

    def _write_ping(self) -> None:
        self._out += _PING

    def _write_end(self) -> None:
        reader = self._reader
        self._close()
        reason = stop_reason_of(
            reader.finish_reason,
            called=reader.called,
            refused=reader.refused,
            stop_sequence=reader.stop_sequence,
        )
        sequence = reader.stop_sequence if reason == "stop_sequence" else None
        self._event(
            "message_delta", _MessageDelta(_Ending(reason, sequence), usage_of(reader.usage))
        )
        self._out += write_event("message_stop", b'{"type":"message_stop"}')

    def _write_error(self, error: CortexError) -> None:
        _, body = error_body(error, self._request_id, prompt_tokens=self._prompt_tokens)
        self._out += write_event("error", body)

    def _begin(self, kind: Literal["text", "thinking", "tool_use"], block: Block) -> None:
        self._start()
        self._close()
        self._open = kind
        self._index += 1
        self._event("content_block_start", _BlockStart(self._index, block))

    def _close(self) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            self._delta(b'"signature_delta","signature":', SIGNATURE)
        self._open = None
        self._out += (
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
            % self._index
        )

    def _delta(self, head: bytes, text: str) -> None:
        # Written by hand: this is most of the stream, and a Struct for each would double its cost.
        self._out += (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b%b}}\n\n'
            % (self._index, head, _encode(text))
        )

    def _event(self, name: str, event: Struct) -> None:
        self._out += write_event(name, _encode(event))
