"""Probe dialect for OpenAI chat completions, as strict as OpenAI's SDK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cortex_cli.doctor.probe import (
    PIXEL,
    SCHEMA,
    TOOL,
    TOOL_DESCRIPTION,
    InvalidResponse,
    ProbeRequest,
    ProbeResponse,
    StreamEvent,
)

PATH = "/v1/chat/completions"
HEADERS: dict[str, str] = {}


def build_body(model: str, request: ProbeRequest) -> dict[str, Any]:
    """Return the body of a request."""
    content: Any = request.prompt
    if request.image:
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        content = [
            {"type": "text", "text": request.prompt},
            {"type": "image_url", "image_url": url},
        ]
    payload: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": content}],
        "stream": request.stream,
    }
    if request.stream:
        payload["stream_options"] = {"include_usage": True}
    if request.tools:
        function = {"name": TOOL, "description": TOOL_DESCRIPTION, "parameters": SCHEMA}
        payload["tools"] = [{"type": "function", "function": function}]
    if request.thinking:
        payload["reasoning_effort"] = "high"
    return payload


def parse_body(answer: Any) -> ProbeResponse:
    """Parse a non-streaming completion.

    Raises:
        InvalidResponse: it is not a completion.
    """
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise InvalidResponse("the response has no choices")
    choice = answer["choices"][0]
    message = choice["message"]
    calls = [c["function"]["arguments"] for c in message.get("tool_calls") or ()]
    return _to_response(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        calls,
        choice["finish_reason"],
        answer.get("usage"),
    )


def parse_stream(events: Sequence[StreamEvent]) -> ProbeResponse:
    """Parse a stream of chunks.

    Raises:
        InvalidResponse: the stream is incomplete, or a part of a tool call belongs to no call.
    """
    text, thinking, stop, usage = "", "", "", None
    calls: dict[int, str] = {}
    for event in events:
        chunk = event.data
        if event is events[-1] and chunk == "[DONE]":
            break
        if not isinstance(chunk, dict):
            raise InvalidResponse("a chunk is not a JSON object")
        if "error" in chunk:
            raise InvalidResponse(f"the stream contains an error: {chunk['error'].get('message')}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            thinking += delta.get("reasoning_content") or ""
            stop = choice.get("finish_reason") or stop
            for part in delta.get("tool_calls") or ():
                if "index" not in part or (part["index"] not in calls and not part.get("id")):
                    raise InvalidResponse(
                        "a part of a tool call has no index, or a tool call has no id"
                    )
                calls.setdefault(part["index"], "")
                calls[part["index"]] += part["function"].get("arguments") or ""
    else:
        raise InvalidResponse("the stream ends without [DONE]")
    if not stop:
        raise InvalidResponse("no chunk has a finish_reason")
    if usage is None:
        raise InvalidResponse("no usage, although it was requested")
    return _to_response(text, thinking, list(calls.values()), stop, usage)


def _to_response(
    text: str, thinking: str, calls: Sequence[str], stop: str, usage: dict[str, Any] | None
) -> ProbeResponse:
    try:
        parsed = tuple(json.loads(arguments) for arguments in calls)
    except ValueError as error:
        raise InvalidResponse(f"the arguments of a tool call are not JSON: {error}") from error
    counts = usage or {}
    return ProbeResponse(
        text=text,
        thinking=thinking,
        calls=parsed,
        stop=stop,
        tokens_in=counts.get("prompt_tokens", 0),
        tokens_out=counts.get("completion_tokens", 0),
    )
