"""The grammars by which `cortex doctor --client` judges streams, on streams that the gateway's translators write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
from clients_kit import TALK
from dialects_kit import events, run

from cortex_cli.doctor import chat, messages, responses
from cortex_cli.doctor.probe import Broken, Event
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter

Translator = MessagesStreamWriter | ResponsesStreamWriter | StreamRepair
DIALECTS: dict[str, tuple[ModuleType, Callable[[], Translator]]] = {
    "messages": (messages, lambda: MessagesStreamWriter(message_id="i", model="m", request_id="r")),
    "responses": (responses, lambda: ResponsesStreamWriter(response_id="i", model="m", created=7)),
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


def stream(made: Translator) -> list[Event]:
    """The events of a talk with thinking, text and two calls."""
    found = events(run(made.feed, made.end, TALK))
    return [Event(e.name, _data(e.data)) for e in found]


def _data(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_the_gateway_writes_is_understood(dialect: str) -> None:
    """Text, thinking, both calls and the counts are read from each dialect."""
    module, make = DIALECTS[dialect]
    told = module.streamed(stream(make()))
    assert (told.text, told.thinking) == ("It is süß 😀.", "Let me see.")
    assert told.calls == ({"city": "Paris"}, {"city": "Rome"})
    assert (told.tokens_in, told.tokens_out) == (11, 5)


MUST = {
    "messages": ("message_start", "content_block_start", "message_stop"),
    "responses": ("response.output_item.added", "response.completed"),
}


@pytest.mark.parametrize(
    ("dialect", "kind"), [(d, kind) for d, kinds in MUST.items() for kind in kinds]
)
def test_an_event_that_is_missing_is_noticed(dialect: str, kind: str) -> None:
    """Without any one of the events that clients need, the stream is broken."""
    module, make = DIALECTS[dialect]
    whole = stream(make())
    for at, event in enumerate(whole):
        if event.name == kind:
            with pytest.raises((Broken, KeyError)):
                module.streamed([*whole[:at], *whole[at + 1 :]])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_stops_early_is_broken(dialect: str) -> None:
    """However early a stream stops, it is not taken for whole."""
    module, make = DIALECTS[dialect]
    whole = stream(make())
    for length in range(len(whole)):
        with pytest.raises(Broken, match=r"without|no chunk"):
            module.streamed(whole[:length])


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_an_event_that_names_no_type_is_broken(dialect: str) -> None:
    """SDKs skip events whose line and data do not agree, so the probe must not."""
    module, make = DIALECTS[dialect]
    whole: Sequence[Event] = stream(make())
    with pytest.raises(Broken, match="twice"):
        module.streamed([Event("message", whole[0].data), *whole[1:]])


def test_pieces_of_a_call_without_an_index_are_broken() -> None:
    """What the gateway would mend is told where it was not mended."""
    piece = {"function": {"name": "f", "arguments": "{}"}}
    chunk = {"choices": [{"delta": {"tool_calls": [piece]}, "finish_reason": None}]}
    with pytest.raises(Broken, match="index"):
        chat.streamed([Event("message", chunk), Event("message", "[DONE]")])
