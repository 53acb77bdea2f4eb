"""What becomes of an answer's bytes on their way to the client."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.engine import CHUNK, DONE, LAST, STREAM

from cortex_common.errors import NotFound, UpstreamFailed
from cortex_common.schema.engine_traits import LLAMACPP, MISTRALRS, OPENAI
from cortex_server.auth.keys import Keyring
from cortex_server.proxy.adapters.count_tokens import CountTokensAdapter
from cortex_server.proxy.adapters.messages import MessagesAdapter
from cortex_server.proxy.adapters.openai import OpenAiAdapter
from cortex_server.proxy.adapters.request_body import read_fields
from cortex_server.proxy.adapters.responses import ResponsesAdapter
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.body import PassthroughBody
from cortex_server.proxy.response.completion import check_completion
from cortex_server.proxy.response.first_bytes import Format
from cortex_server.proxy.response.verdict import Fault, Rejection
from cortex_server.proxy.response_store import ResponseStore

_STORED = ResponseStore().of(Keyring().anonymous)
ASK = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return the data in pieces."""
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def openai(
    stream: bool = True, usage: bool = True, path: str = "/v1/chat/completions"
) -> OpenAiAdapter:
    """Return an OpenAI adapter that has sent its request to the engine."""
    body = json.dumps(ASK | {"stream": stream, "stream_options": {"include_usage": usage}}).encode()
    adapter = OpenAiAdapter(path, body, read_fields(body), b"req-1")
    adapter.engine_body("m", None, OPENAI)
    return adapter


def run(answer: EngineResponse, data: bytes, places: list[int]) -> bytes:
    """All that the client gets."""
    return b"".join([answer.feed(piece) for piece in cut(data, places)]) + answer.end()


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_a_clean_stream_passes_byte_for_byte_however_it_is_cut(places):
    """The same bytes, and the engine's count."""
    answer = openai().response(Format.EVENTS)
    assert run(answer, STREAM, places) == STREAM
    assert answer.usage is not None
    assert (answer.usage.bounded_counts[:2], answer.failure) == ((7, 3), None)


@given(st.integers(len(CHUNK), len(STREAM) - len(LAST + DONE) - 120))
def test_a_stream_that_stops_early_ends_in_an_error_event(length):
    """A stream that ends before its finish reason is an error without [DONE], at any offset."""
    answer = openai().response(Format.EVENTS)
    got = run(answer, STREAM[:length], [])
    events = [e for e in got.split(b"\n\n") if e]
    assert json.loads(events[-1].strip().removeprefix(b"data: "))["error"]["src"] == "cortex"
    assert isinstance(answer.failure, UpstreamFailed)


def test_without_usage_a_token_is_counted_for_each_event():
    """The tokens of an engine that never reports usage are counted by events."""
    answer = openai(usage=False).response(Format.EVENTS)
    run(answer, CHUNK % b"a" + CHUNK % b"b" + LAST + DONE, [])
    assert (answer.usage, answer.output_tokens) == (None, 3)


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_whole_response_of_any_size_passes_unchanged(size):
    """A response without faults is not encoded again, and its usage is read."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    body = json.dumps({"choices": [{"message": {"content": "y" * size}}], "usage": usage})
    answer = openai(stream=False).response(Format.JSON)
    assert run(answer, body.encode(), [1, 5, 1_500_000]) == body.encode()
    assert answer.usage is not None
    assert answer.usage.completion == 2


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ('{"usage":{"prompt_tokens":7,"total_tokens":7},"data":[DATA]}', (7, 0)),
        ('{"data":["DATA"],"usage": {"prompt_tokens": 7, "total_tokens": 7}}', (7, 0)),
        ('{"data":[{"b64_json":"DATA"}],"usage":{"input_tokens":5,"output_tokens":9}}', (5, 9)),
        ('{"usage":{"total_tokens":7},"results":[DATA]}', (7, 0)),
        (
            'data: {"text":"DATA","usage":{"type":"tokens","input_tokens":1,"output_tokens":2}}',
            (1, 2),
        ),
        ('{"text":"DATA","usage":{"type":"duration","seconds":3}}', (0, 0)),
        ('{"words":[{"word":"usage","start":1}],"text":"DATA","usage":null}', (0, 0)),
    ],
)
@pytest.mark.parametrize("size", [1, 2_000_000])
def test_what_is_no_chat_is_counted_too(body, counted, size):
    """Whichever names its usage has, at whichever end, and however much lies between."""
    whole, answer = body.replace("DATA", "1" * size).encode(), PassthroughBody()
    assert run(answer, whole, [1, 30, 60, len(whole) - 20]) == whole
    assert (answer.usage.bounded_counts[:2] if answer.usage else (0, 0)) == counted


def test_invalid_usage_breaks_no_response():
    """Brackets without an end are too deep to be read; the client has what came all the same."""
    nonsense = b'{"usage": {"a": ' + b"[" * 5000
    answer = PassthroughBody()
    answer.feed(nonsense)
    assert (answer.end(), answer.usage) == (b"", None)
    with pytest.raises(UpstreamFailed):
        check_completion(nonsense)


def test_counts_that_no_request_has_are_not_taken():
    """A counter never falls, and a number that no database holds would take the usage of others with it."""
    answer = PassthroughBody()
    answer.feed(b'{"usage": {"prompt_tokens": 1%b, "completion_tokens": -7}}' % (b"0" * 30))
    answer.end()
    assert answer.usage is not None
    prompt, completion, cached = answer.usage.bounded_counts
    assert 0 < prompt < 2**50
    assert (completion, cached) == (0, 0)


def test_an_interrupted_passthrough_body_stays_incomplete():
    """There is no way to say in an audio file that half of it is missing."""
    assert PassthroughBody().fail(UpstreamFailed("gone")) is None


@pytest.mark.parametrize(
    ("path", "events"), [("/v1/audio/speech", False), ("/v1/images/generations", True)]
)
def test_no_event_precedes_a_response_of_unknown_type(path, events):
    """Servers of speech send the audio itself as it is made when they are asked for a stream."""
    assert openai(path=path).stream is events


def test_an_engine_that_cannot_cancel_gets_a_streamed_request():
    """mistral.rs computes on when a client of an unstreamed answer leaves, so the answer is assembled here."""
    body = json.dumps(ASK).encode()
    adapter = OpenAiAdapter("/v1/chat/completions", body, read_fields(body), b"req-1")
    asked = json.loads(adapter.engine_body("m", None, MISTRALRS))
    assert asked == ASK | {"stream": True, "stream_options": {"include_usage": True}}
    whole = json.loads(run(adapter.response(Format.EVENTS), STREAM, [100]))
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == "onetwothree"
    assert whole["usage"]["completion_tokens"] == 3


def test_a_route_that_an_engine_lacks_is_a_501():
    """The engine's 404 would be taken for an unknown model."""
    body = b'{"model":"m","input":"x"}'
    adapter = OpenAiAdapter("/v1/embeddings", body, read_fields(body), b"req-1")
    found = NotFound("Not Found", details={"upstream_status": 404})
    status, answer = adapter.engine_error(Rejection(found, Fault.FEATURE, 404, b"Not Found"))
    assert (status, json.loads(answer)["error"]["code"]) == (501, "not_supported")


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_a_message_stream_is_the_same_however_it_is_cut(places):
    """Anthropic's events, from message_start to message_stop."""
    body = json.dumps(ASK | {"max_tokens": 5, "stream": True}).encode()
    adapter = MessagesAdapter(body, b"req-1")
    adapter.engine_body("m", None, LLAMACPP)
    output = run(adapter.response(Format.EVENTS), STREAM, places)
    assert output.startswith(b"event: message_start")
    assert output.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert b"".join(p.split(b'"')[0] for p in output.split(b'"text_delta","text":"')[1:]) == (
        b"onetwothree"
    )


def test_pings_open_a_message_stream_before_an_engine_is_chosen():
    """During a cold start the stream opens with message_start; the answer continues in the same stream."""
    body = json.dumps(ASK | {"max_tokens": 5, "stream": True}).encode()
    adapter = MessagesAdapter(body, b"req-1")
    opened = adapter.keep_alive(b"loading")
    assert b"message_start" in opened
    assert b"ping" in opened
    adapter.engine_body("m", None, OPENAI)
    assert b"message_start" not in run(adapter.response(Format.EVENTS), STREAM, [])


def test_a_whole_response_is_translated_to_the_responses_api():
    """An output item with the text, completed."""
    adapter = ResponsesAdapter(b'{"model":"m","input":"x"}', b"req-1", _STORED)
    adapter.engine_body("m", None, MISTRALRS)
    output = json.loads(run(adapter.response(Format.EVENTS), STREAM, []))
    assert output["status"] == "completed"
    assert output["output"][0]["content"][0]["text"] == "onetwothree"


def test_tokens_are_counted_by_the_engine_or_estimated():
    """llama.cpp has the route; for others, or with nothing loaded, the estimate answers at once."""
    adapter = CountTokensAdapter(json.dumps(ASK).encode(), b"req-1")
    assert adapter.local_response(LLAMACPP) is None
    assert json.loads(run(adapter.response(Format.JSON), b'{"input_tokens":42}', [])) == {
        "input_tokens": 42
    }
    for traits in (OPENAI, None):
        assert json.loads(adapter.local_response(traits) or b"")["input_tokens"] > 0
