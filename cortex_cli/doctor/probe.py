"""Requests and responses of probes, independent of the dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOOL = "get_weather"
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL_DESCRIPTION = "Returns the weather in a city."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEElEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
"""A red square of 8 by 8 pixels as a base64-encoded PNG."""


class InvalidResponse(Exception):
    """A response violates its dialect; the message is the reason."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """One request.

    Attributes:
        prompt: text of the user message.
        tools: offer the weather tool; the model decides whether to call it, as with real clients.
        image: attach the red square.
        thinking: request reasoning.
        stream: request a stream.
        max_tokens: maximum length of the response.
    """

    prompt: str
    tools: bool = False
    image: bool = False
    thinking: bool = False
    stream: bool = True
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """Contents of a response.

    Attributes:
        text: text of the response.
        thinking: reasoning.
        calls: arguments of each tool call, in order.
        stop: stop reason of the dialect.
        tokens_in: input tokens according to the response; 0 if it has no counts.
        tokens_out: output tokens, likewise.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    stop: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream; `data` is its JSON value, or its text if it is not JSON."""

    name: str
    data: Any
