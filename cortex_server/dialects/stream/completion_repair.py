"""Repair of an unstreamed chat or text completion for clients of OpenAI's API.

The kinds of repair are those of `chunk_repair`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from cortex_common.errors import UpstreamFailed
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import ChatCompletion, decode_strictly
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.lenient import Json, UnreadableContent, decode_leniently
from cortex_server.dialects.stream.tool_call_repair import as_string, stringify_arguments
from cortex_server.dialects.tool_calls import ToolCallIds

_NO_REPAIRS: Counter[str] = Counter()
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def repair_completion(body: bytes, response_id: str) -> tuple[bytes, Counter[str]]:
    """Repair an unstreamed response; return it with the number of repairs by kind.

    Args:
        body: the engine's JSON; one without faults is returned unchanged.
        response_id: unique among responses; missing ids of calls are derived from it.

    Raises:
        CortexError: the body is an error of the engine, or not a complete response.
    """
    repairs = _NO_REPAIRS
    try:
        parsed = decode_strictly(body)
    except (ValueError, RecursionError):
        completion = _decode_leniently(body)
        repairs = Counter(("field_type",))
        parsed = decode_strictly(msgspec.json.encode(completion))
    else:
        if parsed.choices and _is_clean(parsed):
            return body, _NO_REPAIRS
        completion = _decode(body)
    if parsed.is_error:
        raise error_from_event(body)
    if not parsed.choices:
        raise UpstreamFailed("The engine's response has no choices")
    repairs = repairs.copy()
    ids = ToolCallIds((), response_id, "call")
    for choice in completion["choices"]:
        _repair_choice(choice, ids, repairs)
    return (msgspec.json.encode(completion) if repairs else body), repairs


def _decode_leniently(body: bytes) -> Json:
    try:
        return decode_leniently(body)
    except UnreadableContent as failed:
        raise UpstreamFailed(f"The engine's response can't be read: {failed}") from None


def _is_clean(completion: ChatCompletion) -> bool:
    """Return whether nothing needs repair, as far as the decoded fields show it; they do not for tool calls."""
    if completion.is_error:
        return False
    for choice in completion.choices or ():
        if choice.message is not None and choice.message.tool_calls:
            return False
        if (choice.finish_reason or "stop") not in finish_reasons.OPENAI_WORDS:
            return False
    return True


def _repair_choice(choice: Json, ids: ToolCallIds, repairs: Counter[str]) -> None:
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    for call in calls:
        _repair_call(call, ids, repairs)
    reason = choice.get("finish_reason")
    if not reason:
        return
    failure = finish_reasons.failure(reason)
    if failure is not None:
        raise failure
    word, kind = finish_reasons.openai_word(reason), "finish_reason"
    if word == "stop" and calls:
        word, kind = "tool_calls", "finish_reason_tool_calls"
    if word != reason:
        choice["finish_reason"] = word
        repairs[kind] += 1


def _repair_call(call: Json, ids: ToolCallIds, repairs: Counter[str]) -> None:
    function = call.get("function") or {}
    if stringify_arguments(function):
        repairs["tool_arguments_object"] += 1
    elif not (function.get("arguments") or "").strip():
        function["arguments"] = "{}"
        repairs["tool_arguments_missing"] += 1
    call_id = ids.assign(as_string(call.get("id")))
    if call_id != call.get("id"):
        call["id"] = call_id
        repairs["tool_call_id"] += 1
