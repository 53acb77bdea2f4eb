"""The official anthropic SDK through a gateway, against engines that do what real ones do by accident."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest
from clients_kit import (
    HI,
    SAY,
    SCHEMA,
    TALK,
    answer,
    asked,
    claude,
    completion,
    cut_after,
    say,
    silent,
)
from dialects_kit import anthropic_told, chunk, wire
from rigs.engine import SSE_HEAD, Call, Script, chunked, scripted_engine
from rigs.lazy_import import anthropic
from rigs.proxy import ProxyRig, running_proxy

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import GatewaySection
from cortex_common.schema.engine_traits import EngineTraits

WEATHER = {"name": "weather", "input_schema": SCHEMA}
ASK = {"model": "m", "max_tokens": 99, "messages": HI}
NO_CANCEL = EngineTraits(cancels_unstreamed=False)
BROKEN = wire(chunk({"content": "It is"}), done=False)
OUT_OF_MEMORY = (
    BROKEN
    + b'data: {"error":{"code":500,"message":"CUDA out of memory","type":"server_error"}}\n\n'
)


def check_talk(message: anthropic.types.Message) -> None:
    """The message says what `TALK` does."""
    assert [b.type for b in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Let me see."
    assert message.content[1].text == "It is süß 😀."
    assert [b.input for b in message.content[2:]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)
    assert message.model == "m"


async def streamed_message(sdk: anthropic.AsyncAnthropic) -> anthropic.types.Message:
    """The message at the end of a stream."""
    async with sdk.messages.stream(**ASK) as stream:
        return await stream.get_final_message()


async def check_idle(rig: ProxyRig) -> None:
    """Nothing is under way, nor counted as such."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


async def test_a_stream_with_thinking_and_parallel_calls_accumulates() -> None:
    """messages.stream gives the whole message, although the engine interleaved its calls."""
    async with (
        scripted_engine(say(*(TALK[at : at + 50] for at in range(0, len(TALK), 50)))) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        async with sdk.messages.stream(**ASK, tools=[WEATHER]) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            message = await stream.get_final_message()
            assert stream.request_id
        await check_idle(rig)
        sent = asked(engine.calls[0])
    assert text == "It is süß 😀."
    check_talk(message)
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["tools"][0]["function"]["parameters"] == SCHEMA


async def test_a_whole_message_is_the_same_message() -> None:
    """messages.create without a stream reads thinking, text and calls from the engine's whole answer."""
    calls = [
        {"id": i, "type": "function", "function": {"name": "weather", "arguments": a}}
        for i, a in (("a", '{"city":"Paris"}'), ("b", '{"city":"Rome"}'))
    ]
    whole = completion("It is süß 😀.", reasoning_content="Let me see.", tool_calls=calls)
    async with (
        scripted_engine(answer(whole)) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        message = await sdk.messages.create(**ASK, tools=[WEATHER])
    check_talk(message)
    assert message._request_id


async def test_the_tool_loop_goes_around() -> None:
    """A result with an image goes back in an order that every chat template takes."""
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
        scripted_engine(say(SAY)) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        async with sdk.messages.stream(
            model="m", max_tokens=9, messages=turns, system="be brief"
        ) as stream:
            assert (await stream.get_final_message()).content[0].text == "hello"
        sent = asked(engine.calls[0])["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "user"]
    assert (sent[3]["tool_call_id"], sent[3]["content"]) == ("t1", "done")
    assert [part["type"] for part in sent[4]["content"]] == ["image_url", "text"]


async def test_tokens_are_counted_without_a_load() -> None:
    """count_tokens of a model that is not loaded is an estimate, at once."""
    async with (
        running_proxy({}, model_configs=[ModelConfig(id="m", harness="embedded")]) as rig,
        claude(rig.url) as sdk,
    ):
        short = await sdk.messages.count_tokens(model="m", messages=HI)
        tools = await sdk.messages.count_tokens(model="m", messages=HI, tools=[WEATHER])
        assert rig.loads is not None
        assert not rig.loads.requested.is_set()
    assert 0 < short.input_tokens < tools.input_tokens


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (say(OUT_OF_MEMORY), "CUDA out of memory"),
        (say(BROKEN), "before the response was complete"),
        (cut_after(BROKEN), "broke off"),
    ],
    ids=["error-event", "no-end", "cut"],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_broken_stream_is_an_error_and_never_a_short_answer(
    script: Script, words: str, streamed: bool
) -> None:
    """An engine's error, a missing end and a cut are exceptions with the reason."""
    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        if not streamed:  # an engine that can't cancel is asked to stream, and the answer assembled
            rig.fleet.ready("m")[0].traits = NO_CANCEL
        with pytest.raises(anthropic.APIStatusError, match=words):
            await (streamed_message(sdk) if streamed else sdk.messages.create(**ASK))
        await check_idle(rig)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
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
async def test_an_engines_refusal_has_the_class_that_the_sdk_expects(
    status: bytes, body: dict[str, object], kind: str, words: str
) -> None:
    """Statuses become Anthropic's, with the engine's words, and an overflow the ones that clients compact on."""
    async with (
        scripted_engine(answer(body, status)) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        with pytest.raises(getattr(anthropic, kind), match=words) as caught:
            async with sdk.messages.stream(**ASK):
                pass
        assert (
            caught.value.status_code != 401
        )  # an engine's 401 is our mistake, not the client's key


async def test_an_unknown_model_is_not_found() -> None:
    """The SDK raises NotFoundError with names that are close."""
    async with running_proxy({"qwen": "http://127.0.0.1:1"}) as rig, claude(rig.url) as sdk:
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await sdk.messages.create(**ASK | {"model": "qwem"})


async def test_a_stream_is_kept_alive_while_its_model_loads() -> None:
    """Pings come during a cold start, and the message follows in the same stream, within the grammar."""
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy(
            {},
            model_configs=[ModelConfig(id="m", harness="embedded")],
            settings=GatewaySection(cold_start_comment_after_s=0.02),
        ) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        assert rig.loads is not None
        async with http.stream("POST", "/v1/messages", json=ASK | {"stream": True}) as stream:
            pieces = stream.aiter_bytes()
            data = b""
            while data.count(b"event: ping") < 2:
                data += await anext(pieces)
            rig.loads.outcome.set_result(("i1", engine.url))
            data += b"".join([piece async for piece in pieces])
        told = anthropic_told(data)
    assert data.startswith(b"event: message_start")
    assert [block[1] for block in told.blocks] == ["hello"]
    assert told.stop == "end_turn"


async def test_a_stream_is_kept_alive_while_a_long_prompt_is_computed() -> None:
    """Pings come before the engine's first byte, and the SDK does not mind them."""
    go = asyncio.Event()

    async def prefill(call: Call) -> None:
        await go.wait()
        await call.send(SSE_HEAD + chunked(SAY) + b"0\r\n\r\n")

    async with (
        scripted_engine(prefill) as engine,
        running_proxy(
            {"m": engine.url}, settings=GatewaySection(prefill_comment_after_s=0.1)
        ) as rig,
        claude(rig.url) as sdk,
        sdk.messages.stream(**ASK) as stream,  # entered by the head that the ping brought
    ):
        go.set()
        message = await stream.get_final_message()
    assert message.content[0].text == "hello"
    assert message.usage.input_tokens == 11


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_ends_the_engines_work(streamed: bool) -> None:
    """The engine's connection closes, before the first byte too, and nothing stays counted."""
    async with (
        scripted_engine(silent) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        asking = asyncio.create_task(sdk.messages.create(**ASK, stream=streamed))
        await engine.call(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await check_idle(rig)
        assert rig.metrics.disconnects == 1


async def test_a_client_that_leaves_in_mid_stream_ends_the_engines_work() -> None:
    """Leaving the SDK's stream early cancels upstream."""

    async def endless(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(BROKEN))
        await call.wait_closed()

    async with (
        scripted_engine(endless) as engine,
        running_proxy({"m": engine.url}) as rig,
        claude(rig.url) as sdk,
    ):
        async with sdk.messages.stream(**ASK) as stream:
            assert await anext(stream.text_stream) == "It is"
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await check_idle(rig)
