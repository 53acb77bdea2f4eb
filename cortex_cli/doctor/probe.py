"""What a probe asks for and what it is told, in no dialect yet."""

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
ABOUT = "Tells the weather in one city."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEElEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
"""A red square of 8 by 8 as a PNG in base64."""


class Broken(Exception):
    """An answer is not what the dialect says; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One request.

    Attributes:
        prompt: of the user.
        tools: offer the weather tool; whether it is called is up to the model, as it is with real clients.
        image: send the red square along.
        thinking: ask for reasoning.
        stream: ask for a stream.
        max_tokens: of the answer.
    """

    prompt: str
    tools: bool = False
    image: bool = False
    thinking: bool = False
    stream: bool = True
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer said.

    Attributes:
        calls: arguments of each call of the tool, in order.
        stop: why it ended, in the dialect's word.
        tokens_in, tokens_out: as the answer counted them; 0 where it did not.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    stop: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; `data` is its JSON, or a text that is none."""

    name: str
    data: Any
