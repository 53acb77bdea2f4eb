"""The official SDKs parse the output of the translators, over a real socket.

The server is a thin shell around the pure translators: it answers each route with a translated engine stream.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs.lazy_import import anthropic, openai

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_common.schema.engine_traits import OPENAI
from cortex_server.dialects.anthropic import request as anthropic_request
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.anthropic.models import ServedModel, encode_model, encode_model_page
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.history import Input
from cortex_server.dialects.responses.parameters import parse_request
from cortex_server.dialects.responses.request import to_chat
from cortex_server.dialects.responses.resource import new_response
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.tokens import encode_count, estimate

_TALK = sse_stream(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let me "}),
    chunk({"reasoning_content": "see."}),
    chunk({"content": "It is "}),
    chunk({"content": "süß 😀."}),
    chunk(call_delta(0, '{"city"', call_id="a", name="weather")),
    chunk(call_delta(1, '{"city":"Rome"}', call_id="b", name="weather")),
    chunk(call_delta(0, ':"Paris"}')),
    chunk(finish="stop"),
    usage_chunk(prompt=11, completion=5),
)
_INDEX_ZERO = sse_stream(
    chunk(call_delta(0, {"city": "Paris"}, call_id="a", name="weather")),
    chunk(call_delta(0, {"city": "Rome"}, call_id="b", name="weather")),
    chunk(finish="stop"),
)
_CUT = sse_stream(chunk({"content": "It is"}), done=False)
_BROKEN = (
    _CUT + b'data: {"error":{"code":500,"message":"CUDA out of memory","type":"server_error"}}\n\n'
)
_HI_ITEM = msgspec.Raw(b'{"type":"message","role":"user","content":"hi"}')
_MODELS = [ServedModel("m1", created=1_700_000_000, context=8192), ServedModel("m2")]


@dataclass
class _Script:
    """The engine's stream, and the chat requests it received."""

    engine: bytes = _TALK
    requests: list[dict[str, object]] = field(default_factory=list)


Answer = tuple[int, str, list[bytes]]


class _Gateway(ThreadingHTTPServer):
    daemon_threads = False
    script: _Script


class _Routes(BaseHTTPRequestHandler):
    server: _Gateway
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self._send((200, "application/json", [encode_model_page(_MODELS)]))
        else:
            self._send((200, "application/json", [encode_model(_MODELS[0])]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        route = {
            "/v1/messages": self._messages,
            "/v1/messages/count_tokens": self._count,
            "/v1/responses": self._responses,
            "/v1/chat/completions": self._chat,
        }[self.path.partition("?")[0]]
        try:
            self._send(route(body))
        except CortexError as error:
            status, answer = error_response(error, "req_1")
            self._send((status, "application/json", [answer]))

    def _engine_stream(self, chat: bytes) -> list[bytes]:
        self.server.script.requests.append(json.loads(chat))
        data = self.server.script.engine
        return [data[at : at + 37] for at in range(0, len(data), 37)]

    def _messages(self, body: bytes) -> Answer:
        request = anthropic_request.parse_request(body)
        translated = anthropic_request.to_chat(request, model="engine", traits=OPENAI, stream=True)
        if request.stream:
            stream = MessagesStreamWriter(
                message_id="msg_1", model=request.model, request_id="req_1"
            )
            return self._stream(translated.body, stream.feed, stream.end, stream.ping())
        completion = self._aggregate(translated.body)
        return (
            200,
            "application/json",
            [to_message(completion, message_id="msg_1", model=request.model)],
        )

    def _count(self, body: bytes) -> Answer:
        request = anthropic_request.parse_request(body)
        chat = anthropic_request.to_chat(request, model="engine", traits=OPENAI, stream=False)
        return 200, "application/json", [encode_count(estimate(chat.body))]

    def _responses(self, body: bytes) -> Answer:
        request = parse_request(body)
        items = Input((), request.input if isinstance(request.input, list) else (_HI_ITEM,))
        translated = to_chat(request, items, model="engine", traits=OPENAI, stream=True)
        response = new_response(request, response_id="resp_1", created=7)
        if request.stream:
            names = translated.tool_names
            stream = ResponsesStreamWriter(response, tool_names=names, now=lambda: 8)
            return self._stream(translated.body, stream.feed, stream.end, stream.ping())
        completion = self._aggregate(translated.body)
        answer = to_response(completion, response, now=lambda: 8)
        return 200, "application/json", [msgspec.json.encode(answer)]

    def _chat(self, body: bytes) -> Answer:
        wants_usage = bool(json.loads(body).get("stream_options"))
        repair = StreamRepair(
            response_id="r1", client_wants_usage=wants_usage, prompt_tokens=lambda: 9
        )
        return self._stream(body, repair.feed, repair.end, repair.ping())

    def _aggregate(self, chat: bytes) -> bytes:
        aggregator = StreamAggregator(response_id="r1")
        for piece in self._engine_stream(chat):
            aggregator.feed(piece)
        return aggregator.end()

    def _stream(
        self, chat: bytes, feed: Callable[[bytes], bytes], end: Callable[[], bytes], head: bytes
    ) -> Answer:
        pieces = [feed(piece) for piece in self._engine_stream(chat)]
        return 200, "text/event-stream", [head, *pieces, end()]

    def _send(self, answer: Answer) -> None:
        status, kind, pieces = answer
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("request-id", "req_1")
        self.send_header("content-length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


@pytest.fixture
def gateway() -> Iterator[_Gateway]:
    """Run a server on a free loopback port."""
    with _Gateway(("127.0.0.1", 0), _Routes) as server:
        server.script = _Script()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def claude(gateway: _Gateway) -> Iterator[anthropic.Anthropic]:
    """Return the Anthropic SDK, configured for the server."""
    url = f"http://127.0.0.1:{gateway.server_address[1]}"
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(gateway: _Gateway) -> Iterator[openai.OpenAI]:
    """Return the OpenAI SDK, configured for the server."""
    url = f"http://127.0.0.1:{gateway.server_address[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        yield client


_HI = [{"role": "user", "content": "hi"}]
_WEATHER = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def _check_message(message: anthropic.types.Message) -> None:
    types = [block.type for block in message.content]
    assert types == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Let me see."
    assert message.content[1].text == "It is süß 😀."
    assert [block.input for block in message.content[2:]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)
    assert message.model == "claude-x"


def test_anthropic_sdk_accumulates_the_stream(
    claude: anthropic.Anthropic, gateway: _Gateway
) -> None:
    """messages.stream gives the complete message, and the engine got a chat request."""
    with claude.messages.stream(
        model="claude-x", max_tokens=9, messages=_HI, tools=[_WEATHER]
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "It is süß 😀."
    _check_message(message)
    request = gateway.script.requests[0]
    assert request["messages"] == _HI
    assert request["stream_options"] == {"include_usage": True}


def test_anthropic_sdk_iterates_the_raw_stream(claude: anthropic.Anthropic) -> None:
    """Every raw event parses, in the order of the grammar."""
    with claude.messages.create(
        model="claude-x", max_tokens=9, messages=_HI, stream=True
    ) as stream:
        types = [event.type for event in stream]
    assert types[0] == "message_start"
    assert types[-2:] == ["message_delta", "message_stop"]
    assert types.count("content_block_start") == types.count("content_block_stop") == 4


def test_anthropic_sdk_parses_an_unstreamed_message(claude: anthropic.Anthropic) -> None:
    """messages.create without a stream gives the same message."""
    _check_message(claude.messages.create(model="claude-x", max_tokens=9, messages=_HI))


@pytest.mark.parametrize(
    ("engine", "message"),
    [(_BROKEN, "CUDA out of memory"), (_CUT, "before the response was complete")],
)
def test_anthropic_sdk_raises_when_the_stream_fails(
    claude: anthropic.Anthropic, gateway: _Gateway, engine: bytes, message: str
) -> None:
    """An error of the engine and an early end are exceptions with the reason, never a short response."""
    gateway.script.engine = engine
    with (
        pytest.raises(anthropic.APIStatusError, match=message),
        claude.messages.stream(model="claude-x", max_tokens=9, messages=_HI) as stream,
    ):
        stream.get_final_message()


def test_anthropic_sdk_raises_the_right_error_class(claude: anthropic.Anthropic) -> None:
    """An unsupported block is a BadRequestError that names its position."""
    pdf = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0"):
        claude.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": [pdf]}]
        )


def test_anthropic_sdk_counts_tokens_and_lists_models(claude: anthropic.Anthropic) -> None:
    """count_tokens, models.list and models.retrieve parse."""
    assert claude.messages.count_tokens(model="m", messages=_HI).input_tokens > 0
    assert [model.id for model in claude.models.list(limit=1000)] == ["m1", "m2"]
    assert claude.models.retrieve("m1").max_input_tokens == 8192


def _check_response(response: openai.types.responses.Response) -> None:
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response.output[0].summary[0].text == "Let me see."
    assert response.output_text == "It is süß 😀."
    assert [json.loads(item.arguments)["city"] for item in response.output[2:]] == ["Paris", "Rome"]
    assert response.status == "completed"
    assert response.usage.total_tokens == 16
    assert response.model == "gpt-x"


def test_openai_sdk_accumulates_responses(gpt: openai.OpenAI) -> None:
    """responses.stream gives the complete response, with events in order."""
    with gpt.responses.stream(model="gpt-x", input="hi") as stream:
        types = [event.type for event in stream]
        response = stream.get_final_response()
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    _check_response(response)


def test_openai_sdk_parses_an_unstreamed_response(gpt: openai.OpenAI) -> None:
    """responses.create without a stream gives the same response."""
    _check_response(gpt.responses.create(model="gpt-x", input="hi"))


def test_openai_sdk_raises_when_a_response_fails(gpt: openai.OpenAI, gateway: _Gateway) -> None:
    """A failed stream is an exception with the engine's reason, not a short response."""
    gateway.script.engine = _BROKEN
    with (
        pytest.raises(openai.APIError, match="CUDA out of memory"),
        gpt.responses.create(model="gpt-x", input="hi", stream=True) as stream,
    ):
        list(stream)


def test_openai_sdk_accumulates_repaired_calls(gpt: openai.OpenAI, gateway: _Gateway) -> None:
    """Calls that an engine sent as objects at index 0 arrive as two calls, with usage as requested."""
    gateway.script.engine = _INDEX_ZERO
    options = {"include_usage": True}
    with gpt.chat.completions.stream(model="m", messages=_HI, stream_options=options) as stream:
        completion = stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert [(c.id, c.function.name, json.loads(c.function.arguments)["city"]) for c in calls] == [
        ("a", "weather", "Paris"),
        ("b", "weather", "Rome"),
    ]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage.prompt_tokens == 9


@pytest.mark.parametrize(
    ("engine", "message"),
    [(_BROKEN, "CUDA out of memory"), (_CUT, "before the response was complete")],
)
def test_openai_sdk_raises_when_a_chat_fails(
    gpt: openai.OpenAI, gateway: _Gateway, engine: bytes, message: str
) -> None:
    """An error of the engine and an early end are exceptions with the reason."""
    gateway.script.engine = engine
    with (
        pytest.raises(openai.APIError, match=message),
        gpt.chat.completions.create(model="m", messages=_HI, stream=True) as stream,
    ):
        list(stream)


def test_openai_sdk_lists_the_same_models(gpt: openai.OpenAI) -> None:
    """One list serves both SDKs."""
    assert [(model.id, model.created) for model in gpt.models.list()] == [
        ("m1", 1_700_000_000),
        ("m2", 0),
    ]


def test_empty_stream_is_an_error(claude: anthropic.Anthropic, gateway: _Gateway) -> None:
    """An empty stream does not become an empty response."""
    gateway.script.engine = b""
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.messages.create(model="m", max_tokens=9, messages=_HI)
    assert caught.value.status_code == UpstreamFailed.status
