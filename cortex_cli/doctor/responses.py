"""OpenAI Responses, as strictly as its SDK and Codex read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cortex_cli.doctor.probe import ABOUT, PIXEL, SCHEMA, TOOL, Broken, Event, Told, Wish

PATH = "/v1/responses"
HEADERS: dict[str, str] = {}
_LAST = frozenset({"response.completed", "response.incomplete"})


def body(model: str, request: Wish) -> dict[str, Any]:
    """A request, with the instructions where Codex has them."""
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": request.prompt}]
    if request.image:
        parts.append({"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"})
    developer = [{"type": "input_text", "text": "You help."}]
    asked: dict[str, Any] = {
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
        tool = {"type": "function", "name": TOOL, "description": ABOUT, "parameters": SCHEMA}
        asked |= {"tools": [tool], "tool_choice": "auto", "parallel_tool_calls": True}
    if request.thinking:
        asked["reasoning"] = {"effort": "high", "summary": "auto"}
    return asked


def whole(answer: Any) -> Told:
    """What a whole response says.

    Raises:
        Broken: it is none, or failed.
    """
    if not isinstance(answer, dict) or answer.get("object") != "response":
        raise Broken("the answer is no response")
    return _told(answer, answer["output"])


def streamed(events: Sequence[Event]) -> Told:
    """What a stream of events says.

    Raises:
        Broken: it is out of order, or not whole.
    """
    done: list[dict[str, Any]] = []
    active, number = "", -1
    for event in events:
        data = event.data
        if not isinstance(data, dict) or data.get("type") != event.name:
            raise Broken(f"event {event.name!r} does not name its type twice")
        if data["sequence_number"] <= number:
            raise Broken("sequence_number does not grow")
        number = data["sequence_number"]
        if event.name == "response.failed":
            raise Broken(f"the response failed: {data['response']['error']['message']}")
        if event.name == "response.output_item.added":
            active = data["item"]["id"]
        elif event.name == "response.output_item.done":
            done.append(data["item"])
            active = ""
        elif event.name.endswith(".delta") and data["item_id"] != active:
            raise Broken("a delta without an active item")
        elif event.name in _LAST:
            if event is not events[-1]:
                raise Broken(f"events after {event.name}")
            return _told(data["response"], done)
    raise Broken("the stream ends without response.completed")


def _told(response: dict[str, Any], items: Sequence[dict[str, Any]]) -> Told:
    text = [p for i in items if i["type"] == "message" for p in i["content"]]
    reasoning = [p for i in items if i["type"] == "reasoning" for p in i.get("summary", ())]
    try:
        calls = [json.loads(i["arguments"]) for i in items if i["type"] == "function_call"]
    except ValueError as failed:
        raise Broken(f"the arguments of a call are no JSON: {failed}") from failed
    usage = response.get("usage") or {}
    return Told(
        text="".join(p.get("text", "") for p in text),
        thinking="".join(p.get("text", "") for p in reasoning),
        calls=tuple(calls),
        stop=response["status"],
        tokens_in=usage.get("input_tokens", 0),
        tokens_out=usage.get("output_tokens", 0),
    )
