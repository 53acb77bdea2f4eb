"""Which call a piece of a streamed tool call belongs to, and the order in which calls are told.

Engines number their pieces in every imaginable way: by index, all with index 0, without an index,
with id and name in every piece, several finished calls in one chunk, the calls interleaved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from cortex_server.dialects.chat import CallPiece, arguments_text, object_or_none


@dataclass(slots=True)
class Call:
    """One call as it grows.

    Attributes:
        number: its position among the calls of the answer, from 0.
        index: the index that the engine gave it, if any.
        engine_id: the id that the engine gave it; empty so far.
        name: the function; empty until the engine names it.
        parts: its arguments so far.
    """

    number: int
    index: int | None
    engine_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text so far."""
        return "".join(self.parts)

    @property
    def whole(self) -> bool:
        """Whether the arguments are one whole JSON object, so that nothing can follow."""
        return (
            bool(self.parts)
            and self.parts[-1].rstrip().endswith("}")
            and object_or_none(self.arguments) is not None
        )


class CallTracker:
    """Finds the call of each piece."""

    __slots__ = ("_latest", "calls")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._latest: Call | None = None

    def place(self, index: int | None, engine_id: str, name: str, added: str) -> Call:
        """The call that a piece belongs to, which may be a new one; the piece is added to it.

        Args:
            index: the engine's number of the call, if it gave one.
            engine_id: empty when the piece has none.
            name: empty when the piece has none.
            added: arguments.
        """
        call = self._find(index, engine_id, name)
        if call is None:
            call = Call(len(self.calls), index)
            self.calls.append(call)
        call.engine_id = call.engine_id or engine_id
        call.name = call.name or name
        if added:
            call.parts.append(added)
        self._latest = call
        return call

    def place_piece(self, piece: CallPiece) -> None:
        """The same for a piece as it was read; one that says nothing starts no call.

        Raises:
            ValueError: the arguments are no text.
        """
        function = piece.function
        added = arguments_text(function.arguments) if function else ""
        name = (function and function.name) or ""
        if piece.id or name or added:
            self.place(piece.index, piece.id or "", name, added)

    def _find(self, index: int | None, engine_id: str, name: str) -> Call | None:
        if engine_id:
            for known in reversed(self.calls):
                if known.engine_id == engine_id and index in {None, known.index}:
                    return known
        same_index = (c for c in reversed(self.calls) if c.index == index)
        call = self._latest if index is None else next(same_index, None)
        if call is None or (engine_id and call.engine_id) or _another(call, engine_id, name):
            return None
        return call


def _another(call: Call, engine_id: str, name: str) -> bool:
    """Whether a piece without an id of its own starts a new call in the place of `call`."""
    return bool(name and call.name) and not engine_id and call.whole


class CallSink(Protocol):
    """Where calls are told, one after the other."""

    def call_started(self, number: int, engine_id: str, name: str) -> None:
        """A call begins; the one before can have no more."""
        ...

    def call_arguments(self, text: str) -> None:
        """The arguments of the call that began last go on."""
        ...


class CallSequence:
    """Tells calls one at a time, each without a gap: pieces of later ones wait in their call.

    The call that is being told ends when a later one has begun and its own JSON is whole, or when
    the answer ends.
    """

    __slots__ = ("_closed", "_only_first", "_sink", "_told", "_tracker", "_turn")

    def __init__(self, sink: CallSink, *, only_first: bool = False) -> None:
        self._tracker = CallTracker()
        self._sink = sink
        self._turn = -1
        self._told = 0
        self._closed = False
        self._only_first = only_first

    @property
    def began(self) -> bool:
        """Whether any call has been told."""
        return self._turn >= 0

    def piece(self, piece: CallPiece) -> None:
        """Take one piece and tell what can be told.

        Raises:
            ValueError: the arguments are no text.
        """
        self._tracker.place_piece(piece)
        self._tell(at_end=False)

    def settle(self) -> bool:
        """Whether something else may be told now; if so, the call told last is closed for good."""
        calls = self._tracker.calls
        if self._turn >= 0 and not self._closed:
            waiting = self._turn + 1 < len(calls) and not self._only_first
            self._closed = calls[self._turn].whole and not waiting
        return self._turn < 0 or self._closed

    def end(self) -> None:
        """Tell everything that still waits; nothing follows."""
        self._tell(at_end=True)

    def _tell(self, *, at_end: bool) -> None:
        calls = self._tracker.calls
        if self._only_first:
            calls = calls[:1]
        while True:
            if self._turn >= 0:
                self._tell_parts(calls[self._turn])
            following = self._turn + 1
            if following >= len(calls):
                return
            if self._turn >= 0 and not (at_end or calls[self._turn].whole):
                return
            if not calls[following].name and not at_end:
                return
            self._turn, self._told, self._closed = following, 0, False
            call = calls[following]
            self._sink.call_started(call.number, call.engine_id, call.name)

    def _tell_parts(self, call: Call) -> None:
        if not self._closed:
            for text in call.parts[self._told :]:
                self._sink.call_arguments(text)
        self._told = len(call.parts)


class CallIds:
    """Gives each call of an answer an id that the conversation has not used.

    Some engines give none, some count from call_0 in each turn; clients match results to calls by id.

    Args:
        taken: the ids of earlier turns.
        answer_id: unique among answers; what is made up here is derived from it.
        prefix: how ids of this dialect begin, such as "toolu".
    """

    def __init__(self, taken: Collection[str], answer_id: str, prefix: str) -> None:
        self._taken = set(taken)
        self._answer_id = answer_id
        self._prefix = prefix

    def take(self, engine_id: str) -> str:
        """The engine's id if it is free, else one made from it."""
        unique = engine_id
        if not unique or unique in self._taken:
            unique = f"{engine_id or self._prefix}_{self._answer_id}_{len(self._taken)}"
        self._taken.add(unique)
        return unique
