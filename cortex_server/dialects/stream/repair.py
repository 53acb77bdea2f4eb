"""Repairs OpenAI streams on their way through; what is clean passes byte for byte.

Decoding each chunk would cost more than relaying it. So a few searches in the bytes decide whether a
chunk can be anything but plain text in flight; only the others (the first calls, the finish, usage, errors, and
what is malformed) are decoded, and only what is wrong is written anew.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from cortex_common.errors import CortexError, UpstreamFailed, envelope_bytes
from cortex_http.sse import COMMENT, DONE, SseEvent, parse_block, write_data
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.engine_errors import from_stream
from cortex_server.dialects.openai_errors import engine_error
from cortex_server.dialects.stream.chunk_repair import ChunkMender, is_continuation
from cortex_server.dialects.stream.text import Echo, HalfCharacters, is_text

TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning)":"')
"""Before the text of a chunk that carries prose."""

ARGUMENTS = re.compile(rb'"arguments":"')
"""Before the text of a chunk that carries a part of a call."""

_INSIDE = re.compile(rb'(?:[^"\\]|\\.)*')


class Skeleton:
    """The bytes around the text, learned from a clean chunk and replaced when the engine changes them.

    Args:
        echo: how the client's name for the model is put into what passes.
        starts: finds the quote that begins the text.

    Attributes:
        changes: the client calls the model by another name than the engine.
    """

    __slots__ = (
        "_around",
        "_echo",
        "_foot",
        "_head",
        "_start",
        "_starts",
        "_told_foot",
        "_told_head",
        "changes",
    )

    def __init__(self, echo: Echo, starts: re.Pattern[bytes]) -> None:
        self._echo = echo
        self._starts = starts
        self._head = b""  # until an example is known; then all else is known, too

    def learn(self, event: bytes) -> None:
        """Take a clean event, a single one with its blank line, as the example."""
        start = self._starts.search(event)
        if start is None:
            return
        inside = _INSIDE.match(event, start.end())
        assert inside is not None  # the pattern matches nothing, too
        self._head, self._foot = event[: start.end()], event[inside.end() :]
        self._start, self._around = len(self._head), len(self._head) + len(self._foot)
        self._told_head, self._told_foot = self._echo(self._head), self._echo(self._foot)
        self.changes = (self._head, self._foot) != (self._told_head, self._told_foot)

    @property
    def around(self) -> tuple[bytes, bytes] | None:
        """What stands before and after the text of an event that passes unchanged; None where none does."""
        return (self._head, self._foot) if self._head and not self.changes else None

    def forget(self) -> None:
        """The example holds no longer."""
        self._head = b""

    def inside(self, data: bytes) -> bytes | None:
        """The JSON text, without its quotes, of one event like the example; None if it is not like it."""
        head = self._head
        if not head:
            return None
        start, size = self._start, len(data) - self._around
        if not (size >= 0 and data.startswith(head) and data.endswith(self._foot)):
            return None
        inside = data[start : start + size]
        return inside if is_one_text(inside) else None

    def told(self, data: bytes, inside: bytes) -> bytes:
        """The event with the client's name for the model."""
        return self._told_head + inside + self._told_foot if self.changes else data


def is_one_text(inside: bytes) -> bool:
    """Whether what stands between two quotes is one JSON text, in whole characters."""
    # `find`, because `in` first takes the bytes for a number, which costs twice the search.
    if (inside.find(b'"') >= 0 or inside.find(b"\\") >= 0) and _INSIDE.fullmatch(inside) is None:
        return False
    return inside.isascii() or is_text(inside)


_NOT_PLAIN = re.compile(rb'"error"|"(?:finish_reason|usage|tool_calls)"(?!: ?null)')
"""What a chunk of plain text in flight does not have."""

_BLOCK_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_BOM = b"\xef\xbb\xbf"
_KEEP = Echo(None)

# One for all, as making one costs more than what it decodes.
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class StreamRepair:
    """Bytes of an engine's OpenAI stream in, bytes of the client's out; chat and text completions alike.

    Attributes:
        repairs: how often each kind of repair was made, for cortex_stream_repairs_total.
        events: chunks that have passed, about one a token.
        complete: the end was handed out.
        error: why the stream failed: the engine's words, or that it ended early. While `events` is 0,
            answer with it as an HTTP error instead.
    """

    def __init__(
        self,
        *,
        answer_id: str,
        usage_wanted: bool,
        usage_asked: bool = False,
        prompt_tokens: Callable[[], int] = int,
        echo: Echo = _KEEP,
    ) -> None:
        """Start a stream.

        Args:
            answer_id: unique among answers; ids that are missing are derived from it.
            usage_wanted: the client set stream_options.include_usage.
            usage_asked: the gateway set it, so usage that the client does not want is no fault.
            prompt_tokens: makes an estimate, for when the engine never tells.
            echo: puts the client's name for the model into the chunks.
        """
        self.repairs: Counter[str] = Counter()
        self.events = 0
        self.complete = False
        self.error: CortexError | None = None
        self._usage_wanted = usage_wanted
        self._usage_asked = usage_asked
        self._prompt_tokens = prompt_tokens
        self._echo = echo
        self._mender = ChunkMender(answer_id, self.repairs)
        self._text = Skeleton(echo, TEXT)
        self._arguments = Skeleton(echo, ARGUMENTS)
        self._halves = HalfCharacters()
        self._tail = bytearray()
        self._returns = False
        self._usage_told = False
        self._sample = b""

    @property
    def usage(self) -> Usage | None:
        """The engine's count, once it has come."""
        return self._mender.usage

    @property
    def around(self) -> tuple[bytes, bytes] | None:
        """What stands around the text of events that need not come by here, only be counted.

        Such an event is `data` of which nothing but that text differs. None while there is none, or something waits.
        """
        if self.over or self._tail or self._halves.waiting:
            return None
        return self._text.around

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the choices ended, by index."""
        return tuple(reason for _, reason in sorted(self._mender.finished.items()))

    @property
    def over(self) -> bool:
        """Whether what still comes is ignored."""
        return self.complete or self.error is not None

    def ping(self) -> bytes:
        """Keeps the client's idle timer from running out."""
        return b"" if self.over else COMMENT

    def feed(self, data: bytes) -> bytes:
        """What the engine's next bytes, cut anywhere, come to; an unfinished event waits."""
        if self.complete or self.error is not None:
            return b""
        if not self._tail and not self._halves.waiting:
            # One event that differs from a clean one in nothing but its text.
            text = self._text.inside(data)
            if text is not None:
                self.events += 1
                return self._text.told(data, text) if self._text.changes else data
            text = self._arguments.inside(data)
            if text is not None and self._mender.continued(text):
                self.events += 1
                return self._arguments.told(data, text)
        whole = self._whole_events(data)
        if not whole:
            return b""
        passing = self._clean(whole)
        if not passing:
            return self._each(whole)
        self.events += passing
        if not self._sample:  # it names the role, and is like none that follow
            self._sample = whole
        elif passing == 1:
            self._text.learn(whole)
        return self._echo(whole)

    def end(self) -> bytes:
        """The engine closed its stream."""
        if self.over:
            return b""
        out = self._each(bytes(self._tail) + b"\n\n") if self._tail.strip() else b""
        if self.over:
            return out
        if self._mender.finished:
            self.repairs["done_missing"] += 1
            return out + self._ending()
        return out + self.fail(
            UpstreamFailed("The engine's stream ended early, before the answer was whole")
        )

    def fail(self, error: CortexError) -> bytes:
        """The connection to the engine broke, or the gateway gives up: an explicit error event."""
        if self.over:
            return b""
        self.error = error
        return write_data(envelope_bytes(error))

    def _whole_events(self, data: bytes) -> bytes:
        """The tail and these bytes up to the last end of an event; the rest is the new tail."""
        tail = self._tail
        self._returns = self._returns or data.find(b"\r") >= 0
        if self._returns:
            tail += data
            ends = [match.end() for match in _BLOCK_END.finditer(tail)]
            cut = ends[-1] if ends else 0
            whole = bytes(tail[:cut])
            del tail[:cut]
            return whole
        if tail:
            seen = len(tail)
            tail += data
            if tail.find(b"\n\n", seen - 1) < 0:
                return b""
            data = bytes(tail)
            tail.clear()
        elif data.endswith(b"\n\n"):
            return data
        cut = data.rfind(b"\n\n") + 1
        cut += cut > 0
        tail += data[cut:]
        return data[:cut]

    def _clean(self, data: bytes) -> int:
        """How many events these bytes are when all are plain chunks in flight; else 0.

        Each is one line `data: {...}`, in whole characters, without calls, finish, usage or error. The
        counts prove the form: JSON has no line feed of its own, so two for each event are all.
        """
        if not (data.startswith(b"data: {") and data.endswith(b"}\n\n")):
            return 0
        events = data.count(b"}\n\ndata: {") + 1
        if data.count(b"\n") != 2 * events or self._halves.waiting or _NOT_PLAIN.search(data):
            return 0
        return events if is_text(data) else 0

    def _each(self, data: bytes) -> bytes:
        """Whole events, looked at one by one; after them another kind of text begins, or none."""
        self._text.forget()
        if not self._returns and data.find(b"\n\n") == len(data) - 2:
            return self._block(data)
        if not self._returns:
            blocks = [block + b"\n\n" for block in data.split(b"\n\n")[:-1]]
        else:
            ends = [0, *(match.end() for match in _BLOCK_END.finditer(data))]
            blocks = [data[start:end] for start, end in itertools.pairwise(ends)]
        out: list[bytes] = []
        for block in blocks:
            if self.over:
                break
            out.append(self._block(block))
        return b"".join(out)

    def _block(self, raw: bytes) -> bytes:
        lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if self._returns else raw
        event = parse_block(lines.removeprefix(_BOM).strip(b"\n"))
        if event is None or event.name not in {"", "message", "error"}:
            return raw  # comments, and what engines weave in under names of their own
        if event.data == b"[DONE]":
            return self._done(raw)
        if event.name == "error":
            return self._engine_error(event, raw)
        return self._chunk(event, raw)

    def _chunk(self, event: SseEvent, raw: bytes) -> bytes:
        data = self._halves.mend(event.data)
        whole = data == event.data
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError):
            self.repairs["malformed"] += 1
            return b""
        if chunk.get("error"):
            return self._engine_error(SseEvent(event.name, data), raw)
        if not whole:
            self.repairs["half_character"] += 1
        self.events += 1
        self._sample = self._sample or write_data(data)
        changed = self._mender.mend(chunk)
        if chunk.get("usage"):
            if _is_usage_chunk(chunk) and not self._usage_wanted:
                self._count_unasked()
                return b""
            if not self._usage_wanted:
                del chunk["usage"]
                self._count_unasked()
                changed = True
            elif _is_usage_chunk(chunk):
                self._usage_told = True
        if changed or not whole:
            self._arguments.forget()
            return self._echo(write_data(msgspec.json.encode(chunk) if changed else data))
        if raw.find(b'"arguments"') >= 0 and is_continuation(chunk):
            self._arguments.learn(raw)
        else:
            self._arguments.forget()
        return self._echo(raw)

    def _count_unasked(self) -> None:
        if not self._usage_asked:
            self.repairs["usage_unasked"] += 1

    def _engine_error(self, event: SseEvent, raw: bytes) -> bytes:
        """An error in mid-stream, in the one shape that clients look for."""
        self.error = from_stream(event.data)
        if event.name != "error" and _is_openai_error(event.data):
            return raw
        self.repairs["error_shape"] += 1
        return write_data(engine_error(self.error))

    def _done(self, raw: bytes) -> bytes:
        if not self.events:
            return self.fail(UpstreamFailed("The engine ended its stream without an answer"))
        out = b""
        if not self._mender.finished:
            self.repairs["finish_missing"] += 1
            out = self._extra(choices=self._mender.missing_finish())
        return out + self._ending(raw)

    def _ending(self, done: bytes = DONE) -> bytes:
        self.complete = True
        if not self._usage_wanted or self._usage_told:
            return done
        usage = self._mender.raw_usage
        self.repairs["usage_chunk" if usage else "usage_missing"] += 1
        return self._extra(choices=[], usage=usage or self._estimated_usage()) + done

    def _estimated_usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens(), self.events
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _extra(self, **fields: Any) -> bytes:
        """A chunk of our own, with the head of the engine's first."""
        event = parse_block(self._sample.partition(b"\n\n")[0])
        head = _decode(event.data) if event else {}
        kept = {k: head[k] for k in ("id", "object", "created", "model") if k in head}
        return self._echo(write_data(msgspec.json.encode(kept | fields)))


def _is_usage_chunk(chunk: dict[str, Any]) -> bool:
    return not chunk.get("choices")


def _is_openai_error(data: bytes) -> bool:
    try:
        error = msgspec.json.decode(data)["error"]
        return isinstance(error["message"], str)
    except (ValueError, KeyError, TypeError):
        return False
