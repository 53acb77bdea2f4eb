"""OpenAI chat completions, as strictly as its SDK reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cortex_cli.doctor.probe import ABOUT, PIXEL, SCHEMA, TOOL, Broken, Event, Told, Wish

PATH = "/v1/chat/completions"
HEADERS: dict[str, str] = {}


def body(model: str, request: Wish) -> dict[str, Any]:
    """A request."""
    content: Any = request.prompt
    if request.image:
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        content = [
            {"type": "text", "text": request.prompt},
            {"type": "image_url", "image_url": url},
        ]
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": content}],
        "stream": request.stream,
    }
    if request.stream:
        asked["stream_options"] = {"include_usage": True}
    if request.tools:
        function = {"name": TOOL, "description": ABOUT, "parameters": SCHEMA}
        asked["tools"] = [{"type": "function", "function": function}]
    if request.thinking:
        asked["reasoning_effort"] = "high"
    return asked


def whole(answer: Any) -> Told:
    """What a whole completion says.

    Raises:
        Broken: it is none.
    """
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise Broken("the answer has no choices")
    choice = answer["choices"][0]
    message = choice["message"]
    calls = [c["function"]["arguments"] for c in message.get("tool_calls") or ()]
    return _told(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        calls,
        choice["finish_reason"],
        answer.get("usage"),
    )


def streamed(events: Sequence[Event]) -> Told:
    """What a stream of chunks says.

    Raises:
        Broken: it is not whole, or pieces of calls belong to none.
    """
    text, thinking, stop, usage = "", "", "", None
    calls: dict[int, str] = {}
    for event in events:
        chunk = event.data
        if event is events[-1] and chunk == "[DONE]":
            break
        if not isinstance(chunk, dict):
            raise Broken("a chunk is no JSON object")
        if "error" in chunk:
            raise Broken(f"the stream tells an error: {chunk['error'].get('message')}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            thinking += delta.get("reasoning_content") or ""
            stop = choice.get("finish_reason") or stop
            for piece in delta.get("tool_calls") or ():
                if "index" not in piece or (piece["index"] not in calls and not piece.get("id")):
                    raise Broken("a piece of a call has no index, or a call no id")
                calls.setdefault(piece["index"], "")
                calls[piece["index"]] += piece["function"].get("arguments") or ""
    else:
        raise Broken("the stream ends without [DONE]")
    if not stop:
        raise Broken("no chunk has a finish_reason")
    if usage is None:
        raise Broken("no usage, although it was asked for")
    return _told(text, thinking, list(calls.values()), stop, usage)


def _told(
    text: str, thinking: str, calls: Sequence[str], stop: str, usage: dict[str, Any] | None
) -> Told:
    try:
        read = tuple(json.loads(arguments) for arguments in calls)
    except ValueError as failed:
        raise Broken(f"the arguments of a call are no JSON: {failed}") from failed
    counted = usage or {}
    return Told(
        text=text,
        thinking=thinking,
        calls=read,
        stop=stop,
        tokens_in=counted.get("prompt_tokens", 0),
        tokens_out=counted.get("completion_tokens", 0),
    )
