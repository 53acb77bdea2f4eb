"""Anthropic Messages, as strictly as its SDKs read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cortex_cli.doctor.probe import ABOUT, PIXEL, SCHEMA, TOOL, Broken, Event, Told, Wish

PATH = "/v1/messages"
HEADERS = {"anthropic-version": "2023-06-01"}


def body(model: str, request: Wish) -> dict[str, Any]:
    """A request."""
    content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
    if request.image:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content.insert(0, {"type": "image", "source": source})
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": content}],
        "stream": request.stream,
    }
    if request.tools:
        asked["tools"] = [{"name": TOOL, "description": ABOUT, "input_schema": SCHEMA}]
    if request.thinking:
        asked |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
    return asked


def whole(answer: Any) -> Told:
    """What a whole message says.

    Raises:
        Broken: it is no message.
    """
    if not isinstance(answer, dict) or answer.get("type") != "message":
        raise Broken("the answer is no message")
    return _told(answer["content"], answer)


def streamed(events: Sequence[Event]) -> Told:
    """What a stream of events says.

    Raises:
        Broken: it is out of order, or not whole.
    """
    reading = _Reading()
    for event in events:
        if event.name != "ping":
            reading.take(event.name, _checked(event))
    if reading.message is None or not reading.ended or reading.is_open:
        raise Broken("the stream ends without message_stop")
    return _told(reading.blocks, reading.message)


class _Reading:
    """A message as it comes together."""

    def __init__(self) -> None:
        self.message: dict[str, Any] | None = None
        self.blocks: list[dict[str, Any]] = []
        self.is_open = self.ended = False

    def take(self, kind: str, data: dict[str, Any]) -> None:
        """The next event."""
        if kind == "error":
            raise Broken(f"the stream tells an error: {data['error']['message']}")
        if self.ended:
            raise Broken(f"{kind} after message_stop")
        if kind == "message_start":
            self._start(data)
        elif self.message is None:
            raise Broken(f"{kind} before message_start")
        elif kind.startswith("content_block_"):
            self._block(kind, data)
        elif kind == "message_delta":
            self.message["stop_reason"] = data["delta"]["stop_reason"]
            self.message["usage"] = self.message["usage"] | data["usage"]
        elif kind == "message_stop":
            self.ended = True

    def _start(self, data: dict[str, Any]) -> None:
        if self.message is not None:
            raise Broken("message_start comes twice")
        self.message = dict(data["message"])

    def _block(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "content_block_start":
            if self.is_open or data["index"] != len(self.blocks):
                raise Broken("a content block starts out of turn")
            self.blocks.append(dict(data["content_block"]) | {"_json": ""})
            self.is_open = True
            return
        if not self.is_open or data["index"] != len(self.blocks) - 1:
            raise Broken(f"{kind} belongs to no open block")
        if kind == "content_block_stop":
            self.is_open = False
        else:
            _grow(self.blocks[-1], data["delta"])


def _checked(event: Event) -> dict[str, Any]:
    if not isinstance(event.data, dict) or event.data.get("type") != event.name:
        raise Broken(f"event {event.name!r} does not name its type twice, as SDKs need it")
    return event.data


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for kind, field in (("text_delta", "text"), ("thinking_delta", "thinking")):
        if delta["type"] == kind:
            block[field] += delta[field]
    if delta["type"] == "input_json_delta":
        block["_json"] += delta["partial_json"]


def _told(blocks: Sequence[dict[str, Any]], message: dict[str, Any]) -> Told:
    usage = message["usage"]
    return Told(
        text="".join(b["text"] for b in blocks if b["type"] == "text"),
        thinking="".join(b["thinking"] for b in blocks if b["type"] == "thinking"),
        calls=tuple(_input(b) for b in blocks if b["type"] == "tool_use"),
        stop=message["stop_reason"] or "",
        tokens_in=usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0),
        tokens_out=usage["output_tokens"],
    )


def _input(block: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(block["_json"]) if block.get("_json") else block["input"]
    except ValueError as failed:
        raise Broken(f"the input of a call is no JSON: {failed}") from failed
    if not isinstance(found, dict):
        raise Broken("the input of a call is no object")
    return found
