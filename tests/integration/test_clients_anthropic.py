"""The official Anthropic SDK through a gateway, against engines with the habits of real ones."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest
from clients_kit import (
    HELLO_STREAM,
    MESSAGES,
    MIXED_STREAM,
    SCHEMA,
    anthropic_client,
    completion,
    json_response,
    never_respond,
    request_body,
    stream_and_disconnect,
    stream_response,
)
from dialects_kit import chunk, parse_messages_stream, sse_stream
from rigs.engine import SSE_HEAD, Call, Script, chunked, scripted_engine
from rigs.lazy_import import anthropic
from rigs.proxy import ProxyRig, running_proxy

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import GatewaySection
from cortex_common.schema.engine_traits import EngineTraits

WEATHER = {"name": "weather", "input_schema": SCHEMA}
REQUEST = {"model": "m", "max_tokens": 99, "messages": MESSAGES}
NO_CANCEL = EngineTraits(cancels_unstreamed=False)
THINKING: Any = {"type": "adaptive"}
TRUNCATED_STREAM = sse_stream(chunk({"content": "It is"}), done=False)
OUT_OF_MEMORY_STREAM = (
    TRUNCATED_STREAM
    + b'data: {"error":{"code":500,"message":"CUDA out of memory","type":"server_error"}}\n\n'
)


def check_mixed_message(message: anthropic.types.Message) -> None:
    """Check that the message has the content of `MIXED_STREAM`."""
    assert [b.type for b in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Let me see."
    assert message.content[1].text == "It is süß 😀."
    assert [b.input for b in message.content[2:]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)
    assert message.model == "m"


async def streamed_message(sdk: anthropic.AsyncAnthropic) -> anthropic.types.Message:
    """Return the final message of a stream."""
    async with sdk.messages.stream(**REQUEST) as stream:
        return await stream.get_final_message()


async def wait_until_idle(rig: ProxyRig) -> None:
    """Wait until no request is in flight or counted."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


@pytest.mark.compatibility("anthropic (Python)", "messages")
@pytest.mark.compatibility("anthropic (Python)", "tools")
async def test_stream_with_thinking_and_parallel_calls() -> None:
    """messages.stream gives the complete message, although the engine interleaved its calls."""
    pieces = [MIXED_STREAM[at : at + 50] for at in range(0, len(MIXED_STREAM), 50)]
    async with (
        scripted_engine(stream_response(*pieces)) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        async with sdk.messages.stream(**REQUEST, tools=[WEATHER], thinking=THINKING) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            message = await stream.get_final_message()
            assert stream.request_id
        await wait_until_idle(rig)
        sent = request_body(engine.calls[0])
    assert text == "It is süß 😀."
    check_mixed_message(message)
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["tools"][0]["function"]["parameters"] == SCHEMA


async def test_unstreamed_message() -> None:
    """messages.create without a stream returns thinking, text and calls of the engine's unstreamed response."""
    calls = [
        {"id": i, "type": "function", "function": {"name": "weather", "arguments": a}}
        for i, a in (("a", '{"city":"Paris"}'), ("b", '{"city":"Rome"}'))
    ]
    body = completion("It is süß 😀.", reasoning_content="Let me see.", tool_calls=calls)
    async with (
        scripted_engine(json_response(body)) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        message = await sdk.messages.create(**REQUEST, tools=[WEATHER], thinking=THINKING)
    check_mixed_message(message)
    assert message._request_id


async def test_tool_result_with_an_image() -> None:
    """A tool result with an image is sent in an order that every chat template accepts."""
    pixel = base64.b64encode(b"png").decode()
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": pixel},
    }
    turns = [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "shot", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "done"}, image],
                },
                {"type": "text", "text": "what is there?"},
            ],
        },
    ]
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        async with sdk.messages.stream(
            model="m", max_tokens=9, messages=turns, system="be brief"
        ) as stream:
            assert (await stream.get_final_message()).content[0].text == "hello"
        sent = request_body(engine.calls[0])["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "user"]
    assert (sent[3]["tool_call_id"], sent[3]["content"]) == ("t1", "done")
    assert [part["type"] for part in sent[4]["content"]] == ["image_url", "text"]


async def test_counting_tokens_loads_no_model() -> None:
    """count_tokens of a model that is not loaded returns an estimate immediately."""
    async with (
        running_proxy({}, model_configs=[ModelConfig(id="m", harness="embedded")]) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        short = await sdk.messages.count_tokens(model="m", messages=MESSAGES)
        tools = await sdk.messages.count_tokens(model="m", messages=MESSAGES, tools=[WEATHER])
        assert rig.loads is not None
        assert not rig.loads.requested.is_set()
    assert 0 < short.input_tokens < tools.input_tokens


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (stream_response(OUT_OF_MEMORY_STREAM), "CUDA out of memory"),
        (stream_response(TRUNCATED_STREAM), "before the response was complete"),
        (stream_and_disconnect(TRUNCATED_STREAM), "broke off"),
    ],
    ids=["error-event", "no-end", "cut"],
)
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.compatibility("anthropic (Python)", "failures")
async def test_failed_stream_is_an_error(script: Script, message: str, streamed: bool) -> None:
    """An error of the engine, a missing end and a lost connection are exceptions with the reason."""
    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        if (
            not streamed
        ):  # an engine that can't cancel is asked to stream, and the stream is aggregated
            rig.fleet.ready("m")[0].traits = NO_CANCEL
        with pytest.raises(anthropic.APIStatusError, match=message):
            await (streamed_message(sdk) if streamed else sdk.messages.create(**REQUEST))
        await wait_until_idle(rig)


@pytest.mark.parametrize(
    ("status", "body", "error_class", "message"),
    [
        (
            b"400 Bad Request",
            {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}},
            "BadRequestError",
            "prompt is too long: 9000 tokens > 8192 maximum",
        ),
        (b"422 Unprocessable", {"detail": "no such role"}, "BadRequestError", "no such role"),
        (b"429 Too Many", {"error": {"message": "slow down"}}, "RateLimitError", "slow down"),
        (b"503 Unavailable", {"error": {"message": "Loading model"}}, "APIStatusError", "Loading model"),
        (b"401 Unauthorized", {"error": {"message": "bad key"}}, "APIStatusError", "rejected the gateway's key"),
    ],
)  # fmt: skip
async def test_engine_error_has_the_sdk_error_class(
    status: bytes, body: dict[str, object], error_class: str, message: str
) -> None:
    """Statuses become Anthropic's; a context overflow gets the message that clients compact on."""
    async with (
        scripted_engine(json_response(body, status)) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        with pytest.raises(getattr(anthropic, error_class), match=message) as caught:
            async with sdk.messages.stream(**REQUEST):
                pass
        assert (
            caught.value.status_code != 401
        )  # an engine's 401 is about the gateway's key, not the client's


async def test_unknown_model_is_not_found() -> None:
    """The SDK raises NotFoundError."""
    async with (
        running_proxy({"qwen": "http://127.0.0.1:1"}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await sdk.messages.create(**REQUEST | {"model": "qwem"})


async def test_pings_during_a_cold_start() -> None:
    """Pings are sent during a cold start, and the message follows in the same stream, within the grammar."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy(
            {},
            model_configs=[ModelConfig(id="m", harness="embedded")],
            settings=GatewaySection(cold_start_comment_after_s=0.02),
        ) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        assert rig.loads is not None
        async with http.stream("POST", "/v1/messages", json=REQUEST | {"stream": True}) as stream:
            pieces = stream.aiter_bytes()
            data = b""
            while data.count(b"event: ping") < 2:
                data += await anext(pieces)
            rig.loads.outcome.set_result(("i1", engine.url))
            data += b"".join([piece async for piece in pieces])
        parsed = parse_messages_stream(data)
    assert data.startswith(b"event: message_start")
    assert [block[1] for block in parsed.blocks] == ["hello"]
    assert parsed.stop == "end_turn"


async def test_pings_during_prefill() -> None:
    """Pings are sent before the engine's first byte, and the SDK ignores them."""
    prefilled = asyncio.Event()

    async def prefill(call: Call) -> None:
        await prefilled.wait()
        await call.send(SSE_HEAD + chunked(HELLO_STREAM) + b"0\r\n\r\n")

    async with (
        scripted_engine(prefill) as engine,
        running_proxy(
            {"m": engine.url}, settings=GatewaySection(prefill_comment_after_s=0.1)
        ) as rig,
        anthropic_client(rig.url) as sdk,
        sdk.messages.stream(**REQUEST) as stream,  # entered when the ping opens the response
    ):
        prefilled.set()
        message = await stream.get_final_message()
    assert message.content[0].text == "hello"
    assert message.usage.input_tokens == 11


@pytest.mark.parametrize("streamed", [True, False])
async def test_client_disconnect_cancels_the_engine(streamed: bool) -> None:
    """The engine's connection is closed, even before the first byte, and the request is no longer counted."""
    async with (
        scripted_engine(never_respond) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        request = asyncio.create_task(sdk.messages.create(**REQUEST, stream=streamed))
        await engine.call(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await wait_until_idle(rig)
        assert rig.metrics.disconnects == 1


async def test_client_disconnect_during_a_stream_cancels_the_engine() -> None:
    """Leaving the SDK's stream early cancels the upstream request."""

    async def endless(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(TRUNCATED_STREAM))
        await call.wait_closed()

    async with (
        scripted_engine(endless) as engine,
        running_proxy({"m": engine.url}) as rig,
        anthropic_client(rig.url) as sdk,
    ):
        async with sdk.messages.stream(**REQUEST) as stream:
            assert await anext(stream.text_stream) == "It is"
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await wait_until_idle(rig)
