"""Repair of a decoded chunk, or of an unstreamed response, of chat completions.

Works in place on plain JSON objects, not on structs, so that everything else an engine adds (timings, fingerprints,
extensions) is kept as it is.

Kinds of repair, as counted in `repairs` and reported by `cortex_stream_repairs_total`:

- `tool_arguments_object`: the arguments of a call were an object instead of JSON text.
- `tool_call_index`: a call had no index, or the index of another call.
- `tool_call_id`: a call had no id, or the id of another call.
- `tool_call_repeated`: the id or name of a call was repeated in a later fragment.
- `finish_reason_tool_calls`: the finish reason after calls was "stop" instead of "tool_calls".
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from cortex_server.dialects.chat import Usage
from cortex_server.dialects.tool_calls import PartialToolCall, ToolCallIds, ToolCallTracker

Json = dict[str, Any]

_NO_REPAIRS: Counter[str] = Counter()

# Decoders are created once, because creating one costs more than decoding a chunk.
_strings = msgspec.json.Decoder(str)
_decode_object = msgspec.json.Decoder(Json).decode


class ChunkRepair:
    """Repairs the chunks of a stream, one after the other.

    Args:
        response_id: unique among responses; missing ids of calls are derived from it.
        repairs: counts repairs by kind.

    Attributes:
        finish_reasons: the finish reason by index of choice.
        usage: the last usage that the engine sent.
        raw_usage: the same, as the engine wrote it.
    """

    def __init__(self, response_id: str, repairs: Counter[str]) -> None:
        self.finish_reasons: dict[int, str] = {}
        self.usage: Usage | None = None
        self.raw_usage: Json | None = None
        self._response_id = response_id
        self._repairs = repairs
        self._tool_calls: ToolCallRepair | None = None

    def repair(self, chunk: Json) -> bool:
        """Repair a chunk in place; return whether anything changed."""
        usage = chunk.get("usage")
        if isinstance(usage, dict) and usage.get("prompt_tokens") is not None:
            self.raw_usage = usage
            self.usage = _parse_usage(usage)
        choices = chunk.get("choices")
        changed = False
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and self._repair_choice(choice):
                changed = True
        return changed

    def extend_arguments(self, content: bytes) -> bool:
        """Append to the arguments of the latest call; return whether `content` is valid.

        Args:
            content: JSON string content, without its quotes.
        """
        try:
            text = _strings.decode(b'"' + content + b'"')
        except ValueError:
            return False
        if self._tool_calls is not None:
            self._tool_calls.extend_arguments(text)
        return True

    def finishing_choices(self) -> list[Json]:
        """Return the choices of a chunk with the finish reason that the engine omitted before [DONE]."""
        reason = "tool_calls" if self._has_calls(0) else "stop"
        self.finish_reasons[0] = reason
        return [{"index": 0, "delta": {}, "finish_reason": reason}]

    def _has_calls(self, choice: int) -> bool:
        return self._tool_calls is not None and self._tool_calls.has_calls(choice)

    def _repair_choice(self, choice: Json) -> bool:
        index = choice.get("index")
        number = index if isinstance(index, int) else 0
        delta = choice.get("delta")
        fragments = delta.get("tool_calls") if isinstance(delta, dict) else None
        changed = False
        if fragments and isinstance(fragments, list):
            self._tool_calls = self._tool_calls or ToolCallRepair(self._response_id, self._repairs)
            changed = self._tool_calls.repair(number, fragments)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            if reason == "stop" and self._has_calls(number):
                reason = choice["finish_reason"] = "tool_calls"
                self._repairs["finish_reason_tool_calls"] += 1
                changed = True
            self.finish_reasons[number] = reason
        return changed


class ToolCallRepair:
    """Repairs the fragments of a stream's tool calls.

    Args:
        response_id: unique among responses; missing ids are derived from it.
        repairs: counts repairs by kind.
    """

    def __init__(self, response_id: str, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._ids = ToolCallIds((), response_id, "call")
        self._trackers: dict[int, ToolCallTracker] = {}
        self._with_id: set[tuple[int, int]] = set()
        self._with_name: set[tuple[int, int]] = set()
        self._latest: PartialToolCall | None = None

    def repair(self, choice: int, fragments: list[Any]) -> bool:
        """Repair the fragments of a choice in place; return whether anything changed."""
        before = self._repairs.total()
        for fragment in fragments:
            if isinstance(fragment, dict):
                self._repair_fragment(choice, fragment)
        return self._repairs.total() != before

    def has_calls(self, choice: int) -> bool:
        """Return whether the choice has tool calls."""
        return choice in self._trackers

    def extend_arguments(self, arguments: str) -> None:
        """Append to the arguments of the latest call."""
        if self._latest is not None:
            self._latest.fragments.append(arguments)

    def _repair_fragment(self, choice: int, fragment: Json) -> None:
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        if _stringify_arguments(function):
            self._repairs["tool_arguments_object"] += 1
        index = fragment.get("index")
        call = self._trackers.setdefault(choice, ToolCallTracker()).add(
            index if isinstance(index, int) else None,
            _string(fragment.get("id")),
            _string(function.get("name")),
            _string(function.get("arguments")),
        )
        self._latest = call
        if index != call.position:
            fragment["index"] = call.position
            self._repairs["tool_call_index"] += 1
        self._repair_identity((choice, call.position), fragment, function)

    def _repair_identity(self, key: tuple[int, int], fragment: Json, function: Json) -> None:
        """Keep id and name in the first fragment only, because SDKs concatenate them over all fragments."""
        if key not in self._with_id:
            call_id = self._ids.assign(_string(fragment.get("id")))
            if call_id != fragment.get("id"):
                fragment["id"] = call_id
                self._repairs["tool_call_id"] += 1
            fragment.setdefault("type", "function")
            self._with_id.add(key)
        elif fragment.get("id"):
            del fragment["id"]
            self._repairs["tool_call_repeated"] += 1
        if function.get("name"):
            if key in self._with_name:
                del function["name"]
                self._repairs["tool_call_repeated"] += 1
            self._with_name.add(key)


def has_only_arguments(chunk: Json) -> bool:
    """Return whether a chunk has one more fragment of arguments and nothing else."""
    match chunk:
        case {
            "choices": [
                {
                    "finish_reason": None,
                    "delta": {"tool_calls": [{"function": {"arguments": str()}} as fragment]},
                }
            ]
        }:
            has_identity = fragment.get("id") or fragment["function"].get("name")
            return not (has_identity or chunk.get("usage"))
        case _:
            return False


def repair_completion(body: bytes, response_id: str) -> tuple[bytes, Counter[str]]:
    """Repair an unstreamed response; return it with the number of repairs by kind.

    Args:
        body: the engine's JSON; a body without tool calls is returned unchanged and is not decoded.
        response_id: unique among responses; missing ids of calls are derived from it.
    """
    # `find`, because `in` tries the bytes as an integer first, which costs ten times the search.
    if body.find(b'"tool_calls"') < 0:
        return body, _NO_REPAIRS
    repairs: Counter[str] = Counter()
    try:
        completion = _decode_object(body)
        ids = ToolCallIds((), response_id, "call")
        for choice in completion.get("choices") or ():
            _repair_message(choice, ids, repairs)
    except (ValueError, RecursionError, TypeError, AttributeError):
        return body, _NO_REPAIRS  # not a chat completion
    return (msgspec.json.encode(completion) if repairs else body), repairs


def _repair_message(choice: Json, ids: ToolCallIds, repairs: Counter[str]) -> None:
    calls = (choice.get("message") or {}).get("tool_calls") or []
    for call in calls:
        if _stringify_arguments(call.get("function") or {}):
            repairs["tool_arguments_object"] += 1
        call_id = ids.assign(_string(call.get("id")))
        if call_id != call.get("id"):
            call["id"] = call_id
            repairs["tool_call_id"] += 1
    if calls and choice.get("finish_reason") == "stop":
        choice["finish_reason"] = "tool_calls"
        repairs["finish_reason_tool_calls"] += 1


def _stringify_arguments(function: Json) -> bool:
    """Convert arguments that are JSON values to JSON text; return whether they were."""
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return False
    function["arguments"] = msgspec.json.encode(arguments).decode()
    return True


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _parse_usage(raw: Json) -> Usage | None:
    try:
        return msgspec.convert(raw, Usage)
    except msgspec.ValidationError:
        return None
