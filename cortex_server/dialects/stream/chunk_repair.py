"""Repair of a decoded chunk of chat or text completions.

Works in place on plain JSON objects, not on structs, so that everything else an engine adds (timings, fingerprints,
extensions) is kept as it is.

Kinds of repair, as counted in `repairs` and reported by `cortex_stream_repairs_total`:

- `tool_arguments_object`: the arguments of a call were an object instead of JSON text.
- `tool_arguments_repeated`: arguments were sent again, as a whole or cumulatively.
- `tool_arguments_missing`: a call had no arguments at all, not even an empty object.
- `tool_call_index`: a call had no index, or the index of another call.
- `tool_call_id`: a call had no id, or the id of another call.
- `tool_call_repeated`: the id or name of a call was repeated in a later fragment.
- `finish_reason_tool_calls`: the finish reason after calls was "stop" instead of "tool_calls".
- `finish_reason`: the finish reason was another word for one of OpenAI's.
- `usage_fields`: usage had other names than OpenAI's.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from cortex_common.errors import CortexError
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.lenient import Json
from cortex_server.dialects.stream.tool_call_repair import ToolCallRepair
from cortex_server.dialects.usage import Usage

# Created once, because creating a decoder costs more than decoding a chunk.
_strings = msgspec.json.Decoder(str)


class ChunkRepair:
    """Repairs the chunks of a stream, one after the other.

    Args:
        response_id: unique among responses; missing ids of calls are derived from it.
        repairs: counts repairs by kind.

    Attributes:
        finish_reasons: the finish reason by index of choice.
        usage: the last usage that the engine sent.
        raw_usage: the same, as the engine wrote it.
        failure: the error that a finish reason reported.
    """

    def __init__(self, response_id: str, repairs: Counter[str]) -> None:
        self.finish_reasons: dict[int, str] = {}
        self.usage: Usage | None = None
        self.raw_usage: Json | None = None
        self.failure: CortexError | None = None
        self._response_id = response_id
        self._repairs = repairs
        self._tool_calls: ToolCallRepair | None = None

    def repair(self, chunk: Json) -> bool:
        """Repair a chunk in place; return whether anything changed."""
        changed = self._repair_usage(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._read_usage(choice.get("usage"))
                changed = self._repair_choice(choice) or changed
        return changed

    def extend_arguments(self, content: bytes) -> bool:
        """Append to the arguments of the latest call; return False for what needs a closer look.

        Args:
            content: JSON string content, without its quotes.
        """
        try:
            text = _strings.decode(b'"' + content + b'"')
        except ValueError:
            return False
        return self._tool_calls is not None and self._tool_calls.extend_arguments(text)

    def _has_calls(self, choice: int) -> bool:
        return self._tool_calls is not None and self._tool_calls.has_calls(choice)

    def _repair_usage(self, chunk: Json) -> bool:
        raw = chunk.get("usage")
        usage = self._read_usage(raw)
        if usage is None or not isinstance(raw, dict) or "prompt_tokens" in raw:
            return False
        raw["prompt_tokens"], raw["completion_tokens"] = usage.prompt, usage.completion
        raw["total_tokens"] = usage.prompt + usage.completion
        self._repairs["usage_fields"] += 1
        return True

    def _read_usage(self, raw: object) -> Usage | None:
        """Keep a usage object if it has counts, and return them."""
        if not isinstance(raw, dict):
            return None
        usage = _parse_usage(raw)
        if usage is None or not usage.is_reported:
            return None
        self.usage, self.raw_usage = usage, raw
        return usage

    def _repair_choice(self, choice: Json) -> bool:
        index = choice.get("index")
        number = index if isinstance(index, int) else 0
        if "message" in choice and not choice.get("delta"):
            choice["delta"] = choice.pop("message")
        delta = choice.get("delta")
        fragments = delta.get("tool_calls") if isinstance(delta, dict) else None
        changed = False
        if fragments and isinstance(fragments, list):
            self._tool_calls = self._tool_calls or ToolCallRepair(self._response_id, self._repairs)
            changed = self._tool_calls.repair(number, fragments)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            return self._finish_choice(choice, number, reason) or changed
        return changed

    def _finish_choice(self, choice: Json, number: int, reason: str) -> bool:
        self.failure = self.failure or finish_reasons.failure(reason)
        if self.failure is not None:
            choice["finish_reason"] = None
            return True
        word = finish_reasons.openai_word(reason)
        kind = "finish_reason"
        if word == "stop" and self._has_calls(number):
            word, kind = "tool_calls", "finish_reason_tool_calls"
        self.finish_reasons[number] = choice["finish_reason"] = word
        if word != reason:
            self._repairs[kind] += 1
        missing = self._tool_calls.add_missing_arguments(number) if self._tool_calls else []
        if missing:
            choice["delta"] = delta = choice.get("delta") or {}
            delta["tool_calls"] = [*(delta.get("tool_calls") or ()), *missing]
        return word != reason or bool(missing)


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


def _parse_usage(raw: Json) -> Usage | None:
    try:
        return msgspec.convert(raw, Usage)
    except msgspec.ValidationError:
        return None
