"""A whole completion as the events of a stream, for engines that ignore `stream`."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex_common.sse import DONE, write_data
from cortex_server.dialects.lenient import Json, decode_leniently

_NOT_IN_CHUNKS = frozenset({"object", "choices", "usage"})

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def completion_events(body: bytes) -> bytes:
    """Return the events of a chat or text completion, ended by [DONE].

    Args:
        body: The completion, with at least one choice.

    Raises:
        ValueError: It is not a JSON object, or its text can't be read.
    """
    try:
        completion = _decode_object(body)
    except ValueError:
        completion = decode_leniently(body)
    is_text = completion.get("object") == "text_completion"
    common = {k: v for k, v in completion.items() if k not in _NOT_IN_CHUNKS}
    common["object"] = "text_completion" if is_text else "chat.completion.chunk"
    chunks: list[Json] = []
    choices = completion.get("choices")
    for position, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict):
            chunks += ({"choices": [c]} for c in _choice_chunks(position, choice))
    usage = completion.get("usage")
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})
    events = [write_data(msgspec.json.encode(common | chunk)) for chunk in chunks]
    return b"".join([*events, DONE])


def _choice_chunks(position: int, choice: Json) -> list[Json]:
    """Return a choice as one chunk with its content and one with its finish reason."""
    content = {k: v for k, v in choice.items() if k != "message"}
    content.setdefault("index", position)
    content["finish_reason"] = None
    last = {"index": content["index"], "finish_reason": choice.get("finish_reason") or "stop"}
    for name in ("stop_reason", "stopping_word"):
        if name in content:
            last[name] = content.pop(name)
    if "text" in choice:
        return [content, last | {"text": ""}]
    message = choice.get("message")
    delta = choice.get("delta") if message is None else message
    content["delta"] = _delta(delta) if isinstance(delta, dict) else {}
    return [content, last | {"delta": {}}]


def _delta(message: Json) -> Json:
    """Return a message as a delta: its tool calls have an index."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return message | {
        "tool_calls": [
            {"index": at} | call if isinstance(call, dict) else call
            for at, call in enumerate(calls)
        ]
    }
