"""Repair of OpenAI streams on their way to the client; clean bytes pass unchanged.

Decoding every chunk would cost more than relaying it, so a few byte searches decide whether a chunk can be anything
but plain text. Only the others (the first tool calls, the finish reason, usage, errors, and malformed chunks) are
decoded, and only those with a fault are encoded again.

Kinds of repair besides those of `chunk_repair`, as counted in `StreamRepair.repairs`:

- `malformed_chunk`: an event that is not JSON was dropped.
- `split_character`: a UTF-8 character was split between two events.
- `error_format`: an error was not in OpenAI's format.
- `finish_reason_missing`, `done_missing`: the stream lacked a finish reason, or [DONE].
- `usage_unrequested`: usage was removed that neither the client nor the gateway had requested.
- `usage_chunk_missing`: usage came only inside other chunks; a usage chunk was added.
- `usage_missing`: usage was requested but did not come; an estimate was added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

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
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.json_input import is_utf8
from cortex_server.dialects.openai_errors import encode_engine_error
from cortex_server.dialects.stream.chunk_repair import ChunkRepair, has_only_arguments
from cortex_server.dialects.stream.text import ModelNameRewriter, SplitCharacterBuffer

_TEXT_START = re.compile(rb'"(?:content|text|reasoning_content|reasoning)":"')
_ARGUMENTS_START = re.compile(rb'"arguments":"')
_STRING_CONTENT = re.compile(rb'(?:[^"\\]|\\.)*')
_NOT_PLAIN = re.compile(rb'"error"|"(?:finish_reason|usage|tool_calls)"(?!: ?null)')
"""Matches in chunks that are more than plain text."""
_BOM = b"\xef\xbb\xbf"
_KEEP_MODEL_NAME = ModelNameRewriter(None)

# Created once, because creating a decoder costs more than decoding a chunk.
_decode = msgspec.json.Decoder(dict[str, Any]).decode


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
        plain = self._count_plain(complete)
        if not plain:
            return self._repair_events(complete)
        self.events += plain
        if not self._first_event:  # it has the role, so it is no template for others
            self._first_event = complete
        elif plain == 1:
            self._text.learn(complete)
        return self._rename_model(complete)

    def end(self) -> bytes:
        """Return the end of the stream, once the engine has closed its own."""
        if self.ended:
            return b""
        out = self._repair_events(bytes(self._tail) + b"\n\n") if self._tail.strip() else b""
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

        Each is one line `data: {...}` in valid UTF-8, without tool calls, finish reason, usage or error. Counting line
        feeds proves that form: compact JSON contains none, so there are exactly two per event.
        """
        if not (data.startswith(b"data: {") and data.endswith(b"}\n\n")):
            return 0
        events = data.count(b"}\n\ndata: {") + 1
        if data.count(b"\n") != 2 * events or self._characters.pending or _NOT_PLAIN.search(data):
            return 0
        return events if is_utf8(data) else 0

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
        data = self._characters.rejoin(event.data)
        rejoined = data != event.data
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError):
            self.repairs["malformed_chunk"] += 1
            return b""
        if chunk.get("error"):
            return self._handle_error(SseEvent(event.name, data), raw)
        if rejoined:
            self.repairs["split_character"] += 1
        self.events += 1
        self._first_event = self._first_event or write_data(data)
        changed = self._chunk_repair.repair(chunk)
        if chunk.get("usage"):
            if _is_usage_chunk(chunk) and not self._client_wants_usage:
                self._count_unrequested_usage()
                return b""
            if not self._client_wants_usage:
                del chunk["usage"]
                self._count_unrequested_usage()
                changed = True
            elif _is_usage_chunk(chunk):
                self._usage_sent = True
        if changed or rejoined:
            self._arguments.forget()
            return self._rename_model(write_data(msgspec.json.encode(chunk) if changed else data))
        if raw.find(b'"arguments"') >= 0 and has_only_arguments(chunk):
            self._arguments.learn(raw)
        else:
            self._arguments.forget()
        return self._rename_model(raw)

    def _count_unrequested_usage(self) -> None:
        if not self._gateway_requested_usage:
            self.repairs["usage_unrequested"] += 1

    def _handle_error(self, event: SseEvent, raw: bytes) -> bytes:
        """Return an error of the engine in the one format that clients recognize."""
        self.error = error_from_event(event.data)
        if event.name != "error" and _is_openai_error(event.data):
            return raw
        self.repairs["error_format"] += 1
        return write_data(encode_engine_error(self.error))

    def _handle_done(self, raw: bytes) -> bytes:
        if not self.events:
            return self.fail(UpstreamFailed("The engine ended its stream without a response"))
        out = b""
        if not self._chunk_repair.finish_reasons:
            self.repairs["finish_reason_missing"] += 1
            out = self._added_chunk(choices=self._chunk_repair.finishing_choices())
        return out + self._finish(raw)

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


class EventTemplate:
    """The bytes of an event before and after its text, learned from a clean event.

    Args:
        rename_model: puts the client's name of the model into events.
        text_start: matches up to the quote that opens the text.

    Attributes:
        rewrites: the client uses another name for the model than the engine.
    """

    __slots__ = (
        "_client_prefix",
        "_client_suffix",
        "_envelope_size",
        "_prefix",
        "_rename_model",
        "_suffix",
        "_text_at",
        "_text_start",
        "rewrites",
    )

    def __init__(self, rename_model: ModelNameRewriter, text_start: re.Pattern[bytes]) -> None:
        self._rename_model = rename_model
        self._text_start = text_start
        self._prefix = b""  # empty until an event was learned; the other fields are set with it

    def learn(self, event: bytes) -> None:
        """Learn from a clean event, a single one with its blank line."""
        start = self._text_start.search(event)
        if start is None:
            return
        content = _STRING_CONTENT.match(event, start.end())
        assert content is not None  # the pattern also matches an empty string
        self._prefix, self._suffix = event[: start.end()], event[content.end() :]
        self._text_at = len(self._prefix)
        self._envelope_size = len(self._prefix) + len(self._suffix)
        self._client_prefix = self._rename_model(self._prefix)
        self._client_suffix = self._rename_model(self._suffix)
        self.rewrites = (self._prefix, self._suffix) != (self._client_prefix, self._client_suffix)

    def forget(self) -> None:
        """Forget the learned event."""
        self._prefix = b""

    @property
    def envelope(self) -> tuple[bytes, bytes] | None:
        """The bytes before and after the text of events that pass unchanged; None if there are no such events."""
        return (self._prefix, self._suffix) if self._prefix and not self.rewrites else None

    def match(self, data: bytes) -> bytes | None:
        """Return the JSON text, without quotes, of a single event that fits the template; None if it does not."""
        prefix = self._prefix
        if not prefix:
            return None
        start, size = self._text_at, len(data) - self._envelope_size
        if not (size >= 0 and data.startswith(prefix) and data.endswith(self._suffix)):
            return None
        content = data[start : start + size]
        return content if is_string_content(content) else None

    def render(self, data: bytes, text: bytes) -> bytes:
        """Return the event for the client, with its name of the model."""
        return self._client_prefix + text + self._client_suffix if self.rewrites else data


def is_string_content(data: bytes) -> bool:
    """Return whether the bytes between two quotes are the content of one JSON string in valid UTF-8."""
    # `find`, because `in` tries the bytes as an integer first, which costs twice the search.
    if (data.find(b'"') >= 0 or data.find(b"\\") >= 0) and _STRING_CONTENT.fullmatch(data) is None:
        return False
    return data.isascii() or is_utf8(data)


def _is_usage_chunk(chunk: dict[str, Any]) -> bool:
    return not chunk.get("choices")


def _is_openai_error(data: bytes) -> bool:
    try:
        error = msgspec.json.decode(data)["error"]
        return isinstance(error["message"], str)
    except (ValueError, KeyError, TypeError):
        return False
