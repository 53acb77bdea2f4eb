"""Assembly of streamed tool calls: which call a fragment belongs to, and the order in which calls are emitted.

Engines number fragments in every imaginable way: by index, all with index 0, without an index, with id and name in
every fragment, several complete calls in one chunk, calls interleaved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from cortex_server.dialects.chat import ToolCallDelta, arguments_text, parse_object


@dataclass(slots=True)
class PartialToolCall:
    """A tool call received so far.

    Attributes:
        position: its position among the calls of the response, from 0.
        engine_index: the index that the engine gave it, if any.
        engine_id: the id that the engine gave it; empty until it does.
        name: the function; empty until the engine names it.
        fragments: the fragments of its arguments so far.
    """

    position: int
    engine_index: int | None
    engine_id: str = ""
    name: str = ""
    fragments: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text of the arguments so far."""
        return "".join(self.fragments)

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are one complete JSON object, so that nothing can follow."""
        return (
            bool(self.fragments)
            and self.fragments[-1].rstrip().endswith("}")
            and parse_object(self.arguments) is not None
        )


class ToolCallTracker:
    """Assigns each fragment to its tool call.

    Attributes:
        calls: the calls of the response, by position.
    """

    __slots__ = ("_latest", "calls")

    def __init__(self) -> None:
        self.calls: list[PartialToolCall] = []
        self._latest: PartialToolCall | None = None

    def add(
        self, engine_index: int | None, engine_id: str, name: str, arguments: str
    ) -> PartialToolCall:
        """Add a fragment to the call it belongs to, which can be a new one, and return that call.

        Args:
            engine_index: the index of the fragment, if it has one.
            engine_id: the id of the fragment; empty if it has none.
            name: the function name; empty if the fragment has none.
            arguments: the fragment of the arguments.
        """
        call = self._find(engine_index, engine_id, name)
        if call is None:
            call = PartialToolCall(len(self.calls), engine_index)
            self.calls.append(call)
        call.engine_id = call.engine_id or engine_id
        call.name = call.name or name
        if arguments:
            call.fragments.append(arguments)
        self._latest = call
        return call

    def add_delta(self, delta: ToolCallDelta) -> None:
        """Add a decoded fragment; an empty one starts no call.

        Raises:
            ValueError: the arguments are not text.
        """
        function = delta.function
        arguments = arguments_text(function.arguments) if function else ""
        name = (function and function.name) or ""
        if delta.id or name or arguments:
            self.add(delta.index, delta.id or "", name, arguments)

    def _find(self, engine_index: int | None, engine_id: str, name: str) -> PartialToolCall | None:
        if engine_id:
            for call in reversed(self.calls):
                if call.engine_id == engine_id and engine_index in {None, call.engine_index}:
                    return call
        same_index = (c for c in reversed(self.calls) if c.engine_index == engine_index)
        candidate = self._latest if engine_index is None else next(same_index, None)
        if candidate is None or (engine_id and candidate.engine_id):
            return None
        return None if _starts_new_call(candidate, engine_id, name) else candidate


def _starts_new_call(call: PartialToolCall, engine_id: str, name: str) -> bool:
    """Return whether a fragment with the index of `call`, but without an id, starts another call."""
    return bool(name and call.name) and not engine_id and call.is_complete


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
            ValueError: the arguments are not text.
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
