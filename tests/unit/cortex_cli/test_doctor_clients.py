"""The dialects of `cortex doctor --client`, applied to streams that the gateway's translators write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
from clients_kit import MIXED_STREAM
from dialects_kit import parse_events, responses_stream, run_translator

from cortex_cli.doctor import chat, messages, responses
from cortex_cli.doctor.probe import InvalidResponse, StreamEvent
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter

Translator = MessagesStreamWriter | ResponsesStreamWriter | StreamRepair
DIALECTS: dict[str, tuple[ModuleType, Callable[[], Translator]]] = {
    "messages": (messages, lambda: MessagesStreamWriter(message_id="i", model="m", request_id="r")),
    "responses": (responses, responses_stream),
    "chat": (
        chat,
        lambda: StreamRepair(
            response_id="i",
            client_wants_usage=True,
            prompt_tokens=lambda: 11,
            rename_model=ModelNameRewriter("m"),
        ),
    ),
}


def stream(translator: Translator) -> list[StreamEvent]:
    """Return the events of a conversation with thinking, text and two tool calls."""
    events = parse_events(run_translator(translator.feed, translator.end, MIXED_STREAM))
    return [StreamEvent(e.name, _data(e.data)) for e in events]


def _data(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_streams_of_the_gateway_are_valid(dialect: str) -> None:
    """Text, thinking, tool calls and token counts are read from each dialect."""
    module, make = DIALECTS[dialect]
    response = module.parse_stream(stream(make()))
    assert (response.text, response.thinking) == ("It is süß 😀.", "Let me see.")
    assert response.calls == ({"city": "Paris"}, {"city": "Rome"})
    assert (response.tokens_in, response.tokens_out) == (11, 5)


REQUIRED_EVENTS = {
    "messages": ("message_start", "content_block_start", "message_stop"),
    "responses": ("response.output_item.added", "response.completed"),
}


@pytest.mark.parametrize(
    ("dialect", "kind"), [(d, kind) for d, kinds in REQUIRED_EVENTS.items() for kind in kinds]
)
def test_a_missing_event_is_detected(dialect: str, kind: str) -> None:
    """A stream without an event that clients require is invalid."""
    module, make = DIALECTS[dialect]
    whole = stream(make())
    for at, event in enumerate(whole):
        if event.name == kind:
            with pytest.raises((InvalidResponse, KeyError)):
                module.parse_stream([*whole[:at], *whole[at + 1 :]])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_truncated_stream_is_invalid(dialect: str) -> None:
    """A truncated stream is detected at any length."""
    module, make = DIALECTS[dialect]
    whole = stream(make())
    for length in range(len(whole)):
        with pytest.raises(InvalidResponse, match=r"without|no chunk"):
            module.parse_stream(whole[:length])


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_an_event_without_a_type_is_invalid(dialect: str) -> None:
    """Events whose name and data differ are invalid, because SDKs skip them."""
    module, make = DIALECTS[dialect]
    whole: Sequence[StreamEvent] = stream(make())
    with pytest.raises(InvalidResponse, match="does not repeat its type"):
        module.parse_stream([StreamEvent("message", whole[0].data), *whole[1:]])


def test_parts_of_a_tool_call_without_an_index_are_invalid() -> None:
    """A part without an index, which the gateway would repair, is detected."""
    part = {"function": {"name": "f", "arguments": "{}"}}
    chunk = {"choices": [{"delta": {"tool_calls": [part]}, "finish_reason": None}]}
    with pytest.raises(InvalidResponse, match="index"):
        chat.parse_stream([StreamEvent("message", chunk), StreamEvent("message", "[DONE]")])
