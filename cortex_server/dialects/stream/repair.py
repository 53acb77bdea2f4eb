"""Repair of OpenAI streams on their way to the client; clean bytes pass unchanged.

Decoding every chunk would cost more than relaying it, so a few byte searches decide whether a chunk can be anything
but plain text. Only the others (the first tool calls, the finish reason, usage, errors, and malformed chunks) are
decoded, and only those with a fault are encoded again.

Kinds of repair besides those of `chunk_repair`, as counted in `StreamRepair.repairs`:

- `field_type`: a field had another type than in OpenAI's API, or the event was not valid JSON.
- `keep_alive`: an event without JSON, such as "ping", was replaced by a comment.
- `split_character`: a character was split between two events.
- `error_format`: an error was not in OpenAI's format.
- `done_missing`: the stream lacked [DONE].
- `usage_unrequested`: usage was removed that neither the client nor the gateway had requested.
- `usage_chunk_missing`: usage came only inside other chunks; a usage chunk was added.
- `usage_missing`: usage was requested but did not come; an estimate was added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from cortex_common.errors import CortexError, UpstreamFailed, envelope_bytes
from cortex_common.sse import (
    COMMENT,
    DONE,
    EventBuffer,
    SseEvent,
    parse_block,
    split_events,
    write_data,
)
from cortex_server.dialects.chat import is_well_formed_chunk
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.json_input import is_utf8
from cortex_server.dialects.lenient import Json, UnreadableContent, decode_leniently
from cortex_server.dialects.openai_errors import engine_error_body
from cortex_server.dialects.stream.chunk_decoder import decode_lines, unreadable_chunk
from cortex_server.dialects.stream.chunk_repair import ChunkRepair, has_only_arguments
from cortex_server.dialects.stream.event_template import EventTemplate
from cortex_server.dialects.stream.text import ModelNameRewriter, SplitCharacterBuffer
from cortex_server.dialects.usage import Usage

_TEXT_START = re.compile(rb'"(?:content|text|reasoning_content|reasoning)":"')
_ARGUMENTS_START = re.compile(rb'"arguments":"')
_NOT_PLAIN = re.compile(rb'"error"|"(?:finish_reason|usage|tool_calls)"(?!: ?null)')
"""Matches in chunks that are more than plain text."""
_BOM = b"\xef\xbb\xbf"
_KEEP_MODEL_NAME = ModelNameRewriter(None)

# Created once, because creating a decoder costs more than decoding a chunk.
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _Chunk(NamedTuple):
    """A decoded chunk, its JSON, and whether the chunk differs from the JSON that the engine sent."""

    fields: Json
    data: bytes
    changed: bool


class StreamRepair:
    """Converts the bytes of an engine's OpenAI stream to those for the client; for chat and text completions.

    Attributes:
        repairs: number of repairs by kind, for cortex_stream_repairs_total.
        events: chunks that have passed, about one per token.
        complete: the end of the stream was returned.
        error: why the stream failed: the engine's error, or that it ended early. While `events` is 0, answer with it
            as an HTTP error instead.
    """

    def __init__(
        self,
        *,
        response_id: str,
        client_wants_usage: bool,
        gateway_requested_usage: bool = False,
        prompt_tokens: Callable[[], int] = int,
        rename_model: ModelNameRewriter = _KEEP_MODEL_NAME,
    ) -> None:
        """Start a stream.

        Args:
            response_id: unique among responses; missing ids of tool calls are derived from it.
            client_wants_usage: the client set stream_options.include_usage.
            gateway_requested_usage: the gateway set it, so removing usage is not counted as a repair.
            prompt_tokens: returns an estimate, for engines that never report usage.
            rename_model: puts the client's name of the model into chunks.
        """
        self.repairs: Counter[str] = Counter()
        self.events = 0
        self.complete = False
        self.error: CortexError | None = None
        self._client_wants_usage = client_wants_usage
        self._gateway_requested_usage = gateway_requested_usage
        self._prompt_tokens = prompt_tokens
        self._rename_model = rename_model
        self._chunk_repair = ChunkRepair(response_id, self.repairs)
        self._text = EventTemplate(rename_model, _TEXT_START)
        self._arguments = EventTemplate(rename_model, _ARGUMENTS_START)
        self._characters = SplitCharacterBuffer()
        self._buffer = EventBuffer()
        self._tail = self._buffer.tail
        self._usage_sent = False
        self._first_event = b""

    @property
    def usage(self) -> Usage | None:
        """The engine's usage, once received."""
        return self._chunk_repair.usage

    @property
    def text_envelope(self) -> tuple[bytes, bytes] | None:
        """The bytes before and after the text of an event that can bypass `feed` if it is counted in `events`.

        None if no event can bypass it now.
        """
        if self.ended or self._tail or self._characters.pending:
            return None
        return self._text.envelope

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The finish reasons, ordered by index of choice."""
        return tuple(reason for _, reason in sorted(self._chunk_repair.finish_reasons.items()))

    @property
    def ended(self) -> bool:
        """Whether further bytes are ignored."""
        return self.complete or self.error is not None

    @property
    def lingering(self) -> bool:
        """Whether the engine sent a finish reason but has not ended its stream: usage can still come."""
        return bool(self._chunk_repair.finish_reasons) and not self.ended

    def ping(self) -> bytes:
        """Return a comment that resets the client's idle timer."""
        return b"" if self.ended else COMMENT

    def feed(self, data: bytes) -> bytes:
        """Return the client's bytes for more bytes of the engine, split at any point; an incomplete event is kept."""
        if self.complete or self.error is not None:
            return b""
        if not self._tail and not self._characters.pending:
            # One event that differs from an earlier one in nothing but its text.
            text = self._text.match(data)
            if text is not None:
                self.events += 1
                return self._text.render(data, text) if self._text.rewrites else data
            text = self._arguments.match(data)
            if text is not None and self._chunk_repair.extend_arguments(text):
                self.events += 1
                return self._arguments.render(data, text)
        complete = self._buffer.complete(data)
        if not complete:
            return b""
        plain = self._text.count(complete)
        if not plain:
            plain = self._count_plain(complete)
            if not plain:
                return self._repair_events(complete)
            if self._first_event:  # it has the role, so it is no template for others
                self._text.learn(complete[complete.rfind(b"\n\n", 0, -2) + 2 if plain > 1 else 0 :])
            else:
                self._first_event = complete
        self.events += plain
        return self._rename_model(complete)

    def end(self) -> bytes:
        """Return the end of the stream, once the engine has closed its own."""
        if self.ended:
            return b""
        tail = bytes(self._tail).strip()
        out = self._repair_events(tail + b"\n\n") if tail else b""
        if self.ended:
            return out
        if self._chunk_repair.finish_reasons:
            self.repairs["done_missing"] += 1
            return out + self._finish()
        return out + self.fail(
            UpstreamFailed("The engine's stream ended before the response was complete")
        )

    def fail(self, error: CortexError) -> bytes:
        """Return an error event for an error of the gateway, such as a lost connection."""
        if self.ended:
            return b""
        self.error = error
        return write_data(envelope_bytes(error))

    def _count_plain(self, data: bytes) -> int:
        """Return the number of events if all are plain text chunks, else 0.

        Each is one line `data: {...}` in valid UTF-8 and well-formed, without tool calls, finish reason, usage or
        error. Counting line feeds proves that form: compact JSON contains none, so there are exactly two per event.
        """
        if not (data.startswith(b"data: {") and data.endswith(b"}\n\n")):
            return 0
        events = data.count(b"}\n\ndata: {") + 1
        if data.count(b"\n") != 2 * events or self._characters.pending or _NOT_PLAIN.search(data):
            return 0
        if not is_utf8(data):
            return 0
        return events if all(map(is_well_formed_chunk, data[6:-2].split(b"\n\ndata: "))) else 0

    def _repair_events(self, data: bytes) -> bytes:
        """Repair complete events one by one. The text template is forgotten, because other text can follow."""
        self._text.forget()
        if not self._buffer.has_cr and data.find(b"\n\n") == len(data) - 2:
            return self._repair_event(data)
        out: list[bytes] = []
        for block in split_events(data):
            if self.ended:
                break
            out.append(self._repair_event(block))
        return b"".join(out)

    def _repair_event(self, raw: bytes) -> bytes:
        lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if self._buffer.has_cr else raw
        event = parse_block(lines.removeprefix(_BOM).strip(b"\n"))
        if event is None or event.name not in {"", "message", "error"}:
            return raw  # a comment, or an extension of the engine
        if event.data == b"[DONE]":
            return self._handle_done(raw)
        if event.name == "error":
            return self._handle_error(event, raw)
        return self._repair_chunk(event, raw)

    def _repair_chunk(self, event: SseEvent, raw: bytes) -> bytes:
        try:
            chunks = decode_lines(event.data, self._decode_chunk)
        except UnreadableContent as failed:
            return self.fail(unreadable_chunk(event.data, failed))
        if not chunks:
            self.repairs["keep_alive"] += 1
            return COMMENT
        if event.data.find(b"\n") < 0:
            return self._repair_fields(chunks[0], raw)
        self.repairs["field_type"] += 1
        out = b""
        for chunk in chunks:
            if not self.ended:
                out += self._repair_fields(chunk._replace(changed=True), raw)
        return out

    def _decode_chunk(self, data: bytes) -> _Chunk:
        rejoined = self._characters.rejoin(data)
        if is_well_formed_chunk(rejoined):
            chunk = _Chunk(_decode(rejoined), rejoined, changed=rejoined != data)
            if chunk.changed:
                self.repairs["split_character"] += 1
            return chunk
        chunk = _Chunk(decode_leniently(rejoined), rejoined, changed=True)
        self.repairs["field_type"] += 1
        return chunk

    def _repair_fields(self, chunk: _Chunk, raw: bytes) -> bytes:
        """Return the event for a decoded chunk; `raw` is the engine's event."""
        fields = chunk.fields
        if fields.get("error"):
            return self._handle_error(SseEvent("", chunk.data), raw)
        self.events += 1
        if not self._first_event:
            self._first_event = write_data(
                msgspec.json.encode(fields) if chunk.changed else chunk.data
            )
        changed = self._chunk_repair.repair(fields) or chunk.changed
        if fields.get("usage"):
            if _is_usage_chunk(fields) and not self._client_wants_usage:
                self._count_unrequested_usage()
                return b""
            if not self._client_wants_usage:
                del fields["usage"]
                self._count_unrequested_usage()
                changed = True
            elif _is_usage_chunk(fields):
                self._usage_sent = True
        if changed:
            self._arguments.forget()
            return (
                self._rename_model(write_data(msgspec.json.encode(fields))) + self._fail_response()
            )
        if raw.find(b'"arguments"') >= 0 and has_only_arguments(fields):
            self._arguments.learn(raw)
        else:
            self._arguments.forget()
        return self._rename_model(raw)

    def _fail_response(self) -> bytes:
        """Return the error event for a finish reason that reports a failure, or nothing."""
        failure = self._chunk_repair.failure
        return b"" if failure is None else self.fail(failure)

    def _count_unrequested_usage(self) -> None:
        if not self._gateway_requested_usage:
            self.repairs["usage_unrequested"] += 1

    def _handle_error(self, event: SseEvent, raw: bytes) -> bytes:
        """Return an error of the engine in the one format that clients recognize."""
        self.error = error_from_event(event.data)
        shaped = engine_error_body(self.error, event.data)
        if event.name != "error" and shaped == event.data:
            return raw
        self.repairs["error_format"] += 1
        return write_data(shaped)

    def _handle_done(self, raw: bytes) -> bytes:
        if not self.events:
            return self.fail(UpstreamFailed("The engine ended its stream without a response"))
        if not self._chunk_repair.finish_reasons:
            return self.fail(UpstreamFailed("The engine ended its stream without a finish reason"))
        return self._finish(raw)

    def _finish(self, done: bytes = DONE) -> bytes:
        self.complete = True
        if not self._client_wants_usage or self._usage_sent:
            return done
        usage = self._chunk_repair.raw_usage
        self.repairs["usage_chunk_missing" if usage else "usage_missing"] += 1
        return self._added_chunk(choices=[], usage=usage or self._estimated_usage()) + done

    def _estimated_usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens(), self.events
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _added_chunk(self, **fields: Any) -> bytes:
        """Return a chunk made by the gateway, with the ids of the engine's first chunk."""
        event = parse_block(self._first_event.partition(b"\n\n")[0])
        first = _decode(event.data) if event else {}
        kept = {k: first[k] for k in ("id", "object", "created", "model") if k in first}
        return self._rename_model(write_data(msgspec.json.encode(kept | fields)))


def _is_usage_chunk(chunk: dict[str, Any]) -> bool:
    return not chunk.get("choices")
