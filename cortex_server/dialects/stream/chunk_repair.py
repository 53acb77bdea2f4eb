"""Mends one decoded chunk, or one whole answer, of chat completions in place.

Works on plain JSON objects, not on structs: whatever else an engine put into a chunk (timings,
fingerprints, extensions) must come out as it went in.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from cortex_server.dialects.chat import Usage
from cortex_server.dialects.tool_calls import Call, CallIds, CallTracker

Json = dict[str, Any]

_NO_REPAIRS: Counter[str] = Counter()

# Each made once, as making one costs more than what it decodes.
_strings = msgspec.json.Decoder(str)
_decode_answer = msgspec.json.Decoder(Json).decode


class ChunkMender:
    """What must be remembered between chunks to mend the next.

    Attributes:
        finished: finish reason by index of choice.
        usage: the last count that came.
        raw_usage: the same as the engine wrote it.
    """

    def __init__(self, answer_id: str, repairs: Counter[str]) -> None:
        self.finished: dict[int, str] = {}
        self.usage: Usage | None = None
        self.raw_usage: Json | None = None
        self._answer_id = answer_id
        self._repairs = repairs
        self._calls: CallMender | None = None

    def mend(self, chunk: Json) -> bool:
        """Mend in place; whether anything was changed."""
        usage = chunk.get("usage")
        if isinstance(usage, dict) and usage.get("prompt_tokens") is not None:
            self.raw_usage = usage
            self.usage = _usage(usage)
        choices = chunk.get("choices")
        changed = False
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and self._choice(choice):
                changed = True
        return changed

    def continued(self, inside: bytes) -> bool:
        """Whether the call of the chunk before goes on with this JSON text, which has no quotes."""
        try:
            text = _strings.decode(b'"' + inside + b'"')
        except ValueError:
            return False
        if self._calls is not None:
            self._calls.go_on(text)
        return True

    def missing_finish(self) -> list[Json]:
        """The choices of a chunk that says what the engine left unsaid before its [DONE]."""
        reason = "tool_calls" if self._has_calls(0) else "stop"
        self.finished[0] = reason
        return [{"index": 0, "delta": {}, "finish_reason": reason}]

    def _has_calls(self, choice: int) -> bool:
        return self._calls is not None and self._calls.began(choice)

    def _choice(self, choice: Json) -> bool:
        index = choice.get("index")
        number = index if isinstance(index, int) else 0
        delta = choice.get("delta")
        pieces = delta.get("tool_calls") if isinstance(delta, dict) else None
        changed = False
        if pieces and isinstance(pieces, list):
            self._calls = self._calls or CallMender(self._answer_id, self._repairs)
            changed = self._calls.mend(number, pieces)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            if reason == "stop" and self._has_calls(number):
                reason = choice["finish_reason"] = "tool_calls"
                self._repairs["finish_after_calls"] += 1
                changed = True
            self.finished[number] = reason
        return changed


class CallMender:
    """What must be remembered of an answer's calls to mend their next pieces."""

    def __init__(self, answer_id: str, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._ids = CallIds((), answer_id, "call")
        self._trackers: dict[int, CallTracker] = {}
        self._told_ids: dict[tuple[int, int], str] = {}
        self._told_names: set[tuple[int, int]] = set()
        self._latest: Call | None = None

    def mend(self, choice: int, pieces: list[Any]) -> bool:
        """Mend the pieces of one choice in place; whether anything was changed."""
        before = self._repairs.total()
        for piece in pieces:
            if isinstance(piece, dict):
                self._piece(choice, piece)
        return self._repairs.total() != before

    def began(self, choice: int) -> bool:
        """Whether the choice has a call."""
        return choice in self._trackers

    def go_on(self, arguments: str) -> None:
        """More of the arguments of the latest call came."""
        if self._latest is not None:
            self._latest.parts.append(arguments)

    def _piece(self, choice: int, piece: Json) -> None:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        if mend_arguments(function):
            self._repairs["arguments_object"] += 1
        index = piece.get("index")
        call = self._trackers.setdefault(choice, CallTracker()).place(
            index if isinstance(index, int) else None,
            _text(piece.get("id")),
            _text(function.get("name")),
            _text(function.get("arguments")),
        )
        self._latest = call
        if index != call.number:
            piece["index"] = call.number
            self._repairs["call_index"] += 1
        self._tell_once((choice, call.number), piece, function)

    def _tell_once(self, key: tuple[int, int], piece: Json, function: Json) -> None:
        """Id and name stand in the first piece only: SDKs join the texts of all pieces."""
        if key not in self._told_ids:
            told = self._ids.take(_text(piece.get("id")))
            if told != piece.get("id"):
                piece["id"] = told
                self._repairs["call_id"] += 1
            piece.setdefault("type", "function")
            self._told_ids[key] = told
        elif piece.get("id"):
            del piece["id"]
            self._repairs["call_repeated"] += 1
        if function.get("name"):
            if key in self._told_names:
                del function["name"]
                self._repairs["call_repeated"] += 1
            self._told_names.add(key)


def is_continuation(chunk: Json) -> bool:
    """Whether a chunk holds one more piece of arguments and nothing else."""
    match chunk:
        case {
            "choices": [
                {
                    "finish_reason": None,
                    "delta": {"tool_calls": [{"function": {"arguments": str()}} as piece]},
                }
            ]
        }:
            return not (piece.get("id") or piece["function"].get("name") or chunk.get("usage"))
        case _:
            return False


def mend_answer(body: bytes, answer_id: str) -> tuple[bytes, Counter[str]]:
    """Mend a whole answer: calls without ids or with arguments that are objects, a "stop" after calls.

    Args:
        body: the engine's JSON; what has no calls is returned as it came, undecoded.
        answer_id: unique among answers.
    """
    if (
        body.find(b'"tool_calls"') < 0
    ):  # `in` first takes the bytes for a number, which costs ten times that
        return body, _NO_REPAIRS
    repairs: Counter[str] = Counter()
    try:
        answer = _decode_answer(body)
        ids = CallIds((), answer_id, "call")
        for choice in answer.get("choices") or ():
            _mend_message(choice, ids, repairs)
    except (ValueError, RecursionError, TypeError, AttributeError):
        return body, _NO_REPAIRS  # no chat completion: not ours to mend
    return (msgspec.json.encode(answer) if repairs else body), repairs


def _mend_message(choice: Json, ids: CallIds, repairs: Counter[str]) -> None:
    calls = (choice.get("message") or {}).get("tool_calls") or []
    for call in calls:
        if mend_arguments(call.get("function") or {}):
            repairs["arguments_object"] += 1
        told = ids.take(_text(call.get("id")))
        if told != call.get("id"):
            call["id"] = told
            repairs["call_id"] += 1
    if calls and choice.get("finish_reason") == "stop":
        choice["finish_reason"] = "tool_calls"
        repairs["finish_after_calls"] += 1


def mend_arguments(function: Json) -> bool:
    """Turn arguments that came as JSON into JSON text; whether they did."""
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return False
    function["arguments"] = msgspec.json.encode(arguments).decode()
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _usage(raw: Json) -> Usage | None:
    try:
        return msgspec.convert(raw, Usage)
    except msgspec.ValidationError:
        return None
