"""Probe dialect for Anthropic Messages, as strict as Anthropic's SDKs."""

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

PATH = "/v1/messages"
HEADERS = {"anthropic-version": "2023-06-01"}


def build_body(model: str, request: ProbeRequest) -> dict[str, Any]:
    """Return the body of a request."""
    content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
    if request.image:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content.insert(0, {"type": "image", "source": source})
    payload: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": content}],
        "stream": request.stream,
    }
    if request.tools:
        payload["tools"] = [{"name": TOOL, "description": TOOL_DESCRIPTION, "input_schema": SCHEMA}]
    if request.thinking:
        payload |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
    return payload


def parse_body(answer: Any) -> ProbeResponse:
    """Parse a non-streaming message.

    Raises:
        InvalidResponse: it is not a message.
    """
    if not isinstance(answer, dict) or answer.get("type") != "message":
        raise InvalidResponse("the response is not a message")
    return _to_response(answer["content"], answer)


def parse_stream(events: Sequence[StreamEvent]) -> ProbeResponse:
    """Parse a stream of events.

    Raises:
        InvalidResponse: the stream is out of order or incomplete.
    """
    reader = _StreamReader()
    for event in events:
        if event.name != "ping":
            reader.process(event.name, _validate(event))
    if reader.message is None or not reader.ended or reader.is_open:
        raise InvalidResponse("the stream ends without message_stop")
    return _to_response(reader.blocks, reader.message)


class _StreamReader:
    """Assembles a message from events."""

    def __init__(self) -> None:
        self.message: dict[str, Any] | None = None
        self.blocks: list[dict[str, Any]] = []
        self.is_open = self.ended = False

    def process(self, kind: str, data: dict[str, Any]) -> None:
        """Process the next event."""
        if kind == "error":
            raise InvalidResponse(f"the stream contains an error: {data['error']['message']}")
        if self.ended:
            raise InvalidResponse(f"{kind} after message_stop")
        if kind == "message_start":
            self._start(data)
        elif self.message is None:
            raise InvalidResponse(f"{kind} before message_start")
        elif kind.startswith("content_block_"):
            self._block(kind, data)
        elif kind == "message_delta":
            self.message["stop_reason"] = data["delta"]["stop_reason"]
            self.message["usage"] = self.message["usage"] | data["usage"]
        elif kind == "message_stop":
            self.ended = True

    def _start(self, data: dict[str, Any]) -> None:
        if self.message is not None:
            raise InvalidResponse("message_start was sent twice")
        self.message = dict(data["message"])

    def _block(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "content_block_start":
            if self.is_open or data["index"] != len(self.blocks):
                raise InvalidResponse("a content block starts out of order")
            self.blocks.append(dict(data["content_block"]) | {"_json": ""})
            self.is_open = True
            return
        if not self.is_open or data["index"] != len(self.blocks) - 1:
            raise InvalidResponse(f"{kind} belongs to no open block")
        if kind == "content_block_stop":
            self.is_open = False
        else:
            _append_delta(self.blocks[-1], data["delta"])


def _validate(event: StreamEvent) -> dict[str, Any]:
    if not isinstance(event.data, dict) or event.data.get("type") != event.name:
        raise InvalidResponse(
            f"the data of event {event.name!r} does not repeat its type, which SDKs require"
        )
    return event.data


def _append_delta(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for kind, field in (("text_delta", "text"), ("thinking_delta", "thinking")):
        if delta["type"] == kind:
            block[field] += delta[field]
    if delta["type"] == "input_json_delta":
        block["_json"] += delta["partial_json"]


def _to_response(blocks: Sequence[dict[str, Any]], message: dict[str, Any]) -> ProbeResponse:
    usage = message["usage"]
    return ProbeResponse(
        text="".join(b["text"] for b in blocks if b["type"] == "text"),
        thinking="".join(b["thinking"] for b in blocks if b["type"] == "thinking"),
        calls=tuple(_input(b) for b in blocks if b["type"] == "tool_use"),
        stop=message["stop_reason"] or "",
        tokens_in=usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0),
        tokens_out=usage["output_tokens"],
    )


def _input(block: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(block["_json"]) if block.get("_json") else block["input"]
    except ValueError as error:
        raise InvalidResponse(f"the input of a tool call is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise InvalidResponse("the input of a tool call is not an object")
    return arguments
