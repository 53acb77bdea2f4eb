"""Assembly of streamed tool calls: which call a fragment belongs to, and the order in which calls are emitted.

Engines number fragments in every imaginable way: by index, all with index 0, without an index, with id and name in
every fragment, several complete calls in one chunk, calls interleaved. Some send the arguments cumulatively, or once
more as a whole at the end.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from cortex_server.dialects.chat import ToolCallDelta, arguments_text, parse_object

_STRUCTURE = re.compile(r'\\.|["{}\[\]]', re.DOTALL)


class Nesting:
    """Finds the end of a JSON object in fragments of its text, in linear time."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_opened")

    def __init__(self) -> None:
        self._depth = 0
        self._opened = self._in_string = self._escaped = False

    @property
    def is_closed(self) -> bool:
        """Whether as many braces and brackets were closed as were opened."""
        return self._opened and self._depth == 0 and not self._in_string

    def scan(self, text: str) -> None:
        """Continue with more of the text, which is not empty."""
        if self._escaped:
            text = text[1:]
        for character in _STRUCTURE.findall(text):
            if character == '"':
                self._in_string = not self._in_string
            elif not self._in_string and character in "{[":
                self._opened = True
                self._depth += 1
            elif not self._in_string and character in "}]":
                self._depth -= 1
        self._escaped = (len(text) - len(text.rstrip("\\"))) % 2 == 1


@dataclass(slots=True)
class PartialToolCall:
    """A tool call received so far.

    Attributes:
        position: its position among the calls of the response, from 0.
        engine_index: the index that the engine gave it, if any.
        engine_id: the id that the engine gave it; empty until it does.
        name: the function; empty until the engine names it.
        fragments: the fragments of its arguments so far, without repetitions.
    """

    position: int
    engine_index: int | None
    engine_id: str = ""
    name: str = ""
    fragments: list[str] = field(default_factory=list)
    _size: int = 0
    _nesting: Nesting = field(default_factory=Nesting)
    _scanned: int = 0

    @property
    def arguments(self) -> str:
        """The JSON text of the arguments so far."""
        return "".join(self.fragments)

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are one complete JSON object, so that nothing can follow."""
        while self._scanned < len(self.fragments):
            self._nesting.scan(self.fragments[self._scanned])
            self._scanned += 1
        return self._nesting.is_closed and parse_object(self.arguments) is not None

    def add_arguments(self, text: str) -> str:
        """Add a fragment of the arguments; return the part of it that is new.

        A fragment that starts with all that came before is cumulative. Arguments are an object, in which no fragment
        but the first can start with a brace unless it is inside a string.
        """
        if self._size and text.lstrip().startswith("{"):
            text = self._without_repetition(text)
        if text:
            self.fragments.append(text)
            self._size += len(text)
        return text

    def _without_repetition(self, text: str) -> str:
        if len(text) >= self._size:
            known = self.arguments
            if text.startswith(known):
                return text[self._size :]
        return "" if self.has_arguments(text) else text

    def has_arguments(self, text: str) -> bool:
        """Return whether the arguments are complete and the text has the same, perhaps with other white space."""
        return self.is_complete and _parse(text) == _parse(self.arguments)


class Fragment(NamedTuple):
    """A fragment of a tool call: the call that it belongs to, and the part of its arguments that is new."""

    call: PartialToolCall
    arguments: str


class ToolCallTracker:
    """Assigns each fragment to its tool call.

    Attributes:
        calls: the calls of the response, by position.
    """

    __slots__ = ("_latest", "calls")

    def __init__(self) -> None:
        self.calls: list[PartialToolCall] = []
        self._latest: PartialToolCall | None = None

    def add(self, engine_index: int | None, engine_id: str, name: str, arguments: str) -> Fragment:
        """Add a fragment to the call it belongs to, which can be a new one.

        Args:
            engine_index: the index of the fragment, if it has one.
            engine_id: the id of the fragment; empty if it has none.
            name: the function name; empty if the fragment has none.
            arguments: the fragment of the arguments.
        """
        call = self._find(engine_index, engine_id, name, arguments)
        if call is None:
            call = PartialToolCall(len(self.calls), engine_index)
            self.calls.append(call)
        call.engine_id = call.engine_id or engine_id
        call.name = call.name or name
        self._latest = call
        return Fragment(call, call.add_arguments(arguments))

    def add_delta(self, delta: ToolCallDelta) -> None:
        """Add a decoded fragment; an empty one starts no call.

        Raises:
            ValueError: the arguments can't be read.
        """
        function = delta.function
        arguments = arguments_text(function.arguments) if function else ""
        name = (function and function.name) or ""
        if delta.id or name or arguments:
            self.add(delta.index, delta.id or "", name, arguments)

    def _find(
        self, engine_index: int | None, engine_id: str, name: str, arguments: str
    ) -> PartialToolCall | None:
        if engine_id:
            for call in reversed(self.calls):
                if call.engine_id == engine_id and engine_index in {None, call.engine_index}:
                    return call
        same_index = (c for c in reversed(self.calls) if c.engine_index == engine_index)
        candidate = self._latest if engine_index is None else next(same_index, None)
        if candidate is None:
            return None
        if engine_id and candidate.engine_id:
            # vLLM gave each fragment another id for a while.
            is_same = engine_index is not None and not name and not candidate.is_complete
            return candidate if is_same else None
        if not (name and candidate.name and candidate.is_complete) or engine_id:
            return candidate
        is_same_function = engine_index is not None and name == candidate.name
        return candidate if is_same_function and candidate.has_arguments(arguments) else None


def _parse(text: str) -> object:
    """Return the value of a JSON text; text that is not JSON is equal to nothing."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return object()


class ToolCallHandler(Protocol):
    """Receives tool calls one after the other."""

    def on_tool_call(self, position: int, engine_id: str, name: str) -> None:
        """Handle the start of a call; the previous call is complete."""
        ...

    def on_arguments(self, text: str) -> None:
        """Handle more of the arguments of the current call."""
        ...


class ToolCallSequencer:
    """Emits calls one at a time, without gaps; fragments of later calls are buffered.

    The current call ends when a later one has started and the current one's arguments are complete, or when the
    response ends.

    Args:
        handler: receives the calls.
        only_first: ignore all calls but the first.
    """

    __slots__ = ("_closed", "_current", "_emitted", "_handler", "_only_first", "_tracker")

    def __init__(self, handler: ToolCallHandler, *, only_first: bool = False) -> None:
        self._tracker = ToolCallTracker()
        self._handler = handler
        self._current = -1
        self._emitted = 0
        self._closed = False
        self._only_first = only_first

    @property
    def has_calls(self) -> bool:
        """Whether any call was emitted."""
        return self._current >= 0

    def add(self, delta: ToolCallDelta) -> None:
        """Add a fragment and emit what can be emitted.

        Raises:
            ValueError: the arguments can't be read.
        """
        self._tracker.add_delta(delta)
        self._emit(at_end=False)

    def close_current(self) -> bool:
        """Close the current call if it is complete; return whether other content can be emitted now."""
        calls = self._tracker.calls
        if self._current >= 0 and not self._closed:
            has_next = self._current + 1 < len(calls) and not self._only_first
            self._closed = calls[self._current].is_complete and not has_next
        return self._current < 0 or self._closed

    def finish(self) -> None:
        """Emit everything that is still buffered; nothing follows."""
        self._emit(at_end=True)

    def _emit(self, *, at_end: bool) -> None:
        calls = self._tracker.calls
        if self._only_first:
            calls = calls[:1]
        while True:
            if self._current >= 0:
                self._emit_arguments(calls[self._current])
            following = self._current + 1
            if following >= len(calls):
                return
            if self._current >= 0 and not (at_end or calls[self._current].is_complete):
                return
            if not calls[following].name and not at_end:
                return
            self._current, self._emitted, self._closed = following, 0, False
            call = calls[following]
            self._handler.on_tool_call(call.position, call.engine_id, call.name)

    def _emit_arguments(self, call: PartialToolCall) -> None:
        if not self._closed:
            for text in call.fragments[self._emitted :]:
                self._handler.on_arguments(text)
        self._emitted = len(call.fragments)


class ToolCallIds:
    """Assigns each tool call of a response an id that is unique in the conversation.

    Some engines send no ids, and some count from call_0 in each turn; clients match results to calls by id.

    Args:
        used: ids of earlier turns.
        response_id: unique among responses; generated ids are derived from it.
        prefix: the prefix of generated ids, such as "toolu".
    """

    def __init__(self, used: Collection[str], response_id: str, prefix: str) -> None:
        self._used = set(used)
        self._response_id = response_id
        self._prefix = prefix

    def assign(self, engine_id: str) -> str:
        """Return the engine's id if it is unused, else one derived from it."""
        unique = engine_id
        if not unique or unique in self._used:
            unique = f"{engine_id or self._prefix}_{self._response_id}_{len(self._used)}"
        self._used.add(unique)
        return unique
