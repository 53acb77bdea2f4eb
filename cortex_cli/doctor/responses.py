"""Probe dialect for OpenAI Responses, as strict as OpenAI's SDK and Codex."""

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

PATH = "/v1/responses"
HEADERS: dict[str, str] = {}
_FINAL_EVENTS = frozenset({"response.completed", "response.incomplete"})


def build_body(model: str, request: ProbeRequest) -> dict[str, Any]:
    """Return the body of a request, with the instructions in the place that Codex uses."""
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": request.prompt}]
    if request.image:
        parts.append({"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"})
    developer = [{"type": "input_text", "text": "You help."}]
    payload: dict[str, Any] = {
        "model": model,
        "max_output_tokens": request.max_tokens,
        "input": [
            {"type": "message", "role": "developer", "content": developer},
            {"type": "message", "role": "user", "content": parts},
        ],
        "stream": request.stream,
        "store": False,
    }
    if request.tools:
        tool = {
            "type": "function",
            "name": TOOL,
            "description": TOOL_DESCRIPTION,
            "parameters": SCHEMA,
        }
        payload |= {"tools": [tool], "tool_choice": "auto", "parallel_tool_calls": True}
    if request.thinking:
        payload["reasoning"] = {"effort": "high", "summary": "auto"}
    return payload


def parse_body(answer: Any) -> ProbeResponse:
    """Parse a non-streaming response.

    Raises:
        InvalidResponse: it is not a response.
    """
    if not isinstance(answer, dict) or answer.get("object") != "response":
        raise InvalidResponse("the body is not a response")
    return _to_response(answer, answer["output"])


def parse_stream(events: Sequence[StreamEvent]) -> ProbeResponse:
    """Parse a stream of events.

    Raises:
        InvalidResponse: the stream is out of order or incomplete.
    """
    done: list[dict[str, Any]] = []
    active, number = "", -1
    for position, event in enumerate(events):
        data = event.data
        if not isinstance(data, dict) or data.get("type") != event.name:
            raise InvalidResponse(f"the data of event {event.name!r} does not repeat its type")
        if data["sequence_number"] <= number:
            raise InvalidResponse("sequence_number does not increase")
        number = data["sequence_number"]
        if event.name == "response.failed":
            raise InvalidResponse(f"the response failed: {data['response']['error']['message']}")
        if event.name == "response.output_item.added":
            active = data["item"]["id"]
        elif event.name == "response.output_item.done":
            done.append(data["item"])
            active = ""
        elif event.name.endswith(".delta") and data["item_id"] != active:
            raise InvalidResponse("a delta without an active item")
        elif event.name in _FINAL_EVENTS:
            if [following.data for following in events[position + 1 :]] != ["[DONE]"]:
                raise InvalidResponse(f"{event.name} without [DONE] alone after it")
            return _to_response(data["response"], done)
    raise InvalidResponse("the stream ends without response.completed")


def _to_response(response: dict[str, Any], items: Sequence[dict[str, Any]]) -> ProbeResponse:
    text = [p for i in items if i["type"] == "message" for p in i["content"]]
    reasoning = [p for i in items if i["type"] == "reasoning" for p in i.get("summary", ())]
    try:
        calls = [json.loads(i["arguments"]) for i in items if i["type"] == "function_call"]
    except ValueError as error:
        raise InvalidResponse(f"the arguments of a tool call are not JSON: {error}") from error
    usage = response.get("usage") or {}
    return ProbeResponse(
        text="".join(p.get("text", "") for p in text),
        thinking="".join(p.get("text", "") for p in reasoning),
        calls=tuple(calls),
        stop=response["status"],
        tokens_in=usage.get("input_tokens", 0),
        tokens_out=usage.get("output_tokens", 0),
    )
