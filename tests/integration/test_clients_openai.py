"""The official openai SDK through a gateway, against engines that do what real ones do by accident."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from clients_kit import HI, SAY, SCHEMA, TALK, answer, asked, completion, gpt, say, silent
from dialects_kit import call, chunk, responses_told, usage, usage_chunk, wire
from rigs.engine import SSE_HEAD, Call, Script, chunked, http_response, scripted_engine
from rigs.lazy_import import openai
from rigs.proxy import ProxyRig, ready, running_proxy

from cortex_common.config.catalogue import ModelConfig, ParamsSection
from cortex_common.config.gateway import GatewaySection
from cortex_common.schema.engine_traits import LLAMACPP
from cortex_server.metrics.exposition import GatewayCollector

FUNCTION = {"name": "weather", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
BROKEN = wire(chunk({"content": "It is"}), done=False)
OUT_OF_MEMORY = (
    BROKEN
    + b'data: {"error":{"code":500,"message":"CUDA out of memory","type":"server_error"}}\n\n'
)


COUNTED = "cortex_stream_repairs_total"


async def check_idle(rig: ProxyRig) -> None:
    """Nothing is under way, nor counted as such."""
    await rig.wait_idle()
    assert all(i.in_flight == 0 for i in rig.fleet.snapshot.instances())


BAD_STREAMS = {
    "calls all at index 0, as objects": (
        [
            chunk(call(0, {"city": "Paris"}, ident="a", name="weather")),
            chunk(call(0, {"city": "Rome"}, ident="b", name="weather")),
            chunk(finish="stop"),
            usage_chunk(),
        ],
        {"tool_call_index", "tool_arguments_object", "finish_reason_tool_calls"},
    ),
    "calls without an index, usage in the last chunk": (
        [
            chunk(call(None, '{"city":"Paris"}', ident="a", name="weather")),
            chunk(call(None, '{"city":"Rome"}', ident="b", name="weather")),
            chunk(finish="tool_calls", usage=usage()),
        ],
        {"tool_call_index", "usage_chunk_missing"},
    ),
}


@pytest.mark.parametrize(("chunks", "kinds"), BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
async def test_calls_of_a_careless_engine_arrive_whole_and_the_repairs_are_counted(
    chunks: list[dict[str, object]], kinds: set[str]
) -> None:
    """chat.completions.stream puts two calls together, and the metrics tell what was mended on which harness."""
    async with (
        scripted_engine(say(wire(*chunks))) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        options = {"include_usage": True}
        async with sdk.chat.completions.stream(
            model="m", messages=HI, tools=TOOLS, stream_options=options
        ) as stream:
            final = await stream.get_final_completion()
        await check_idle(rig)
        counted = Counter(rig.metrics.repairs)
        told = [
            s.labels
            for f in GatewayCollector(rig.metrics).collect()
            for s in f.samples
            if s.name == COUNTED
        ]
    calls = final.choices[0].message.tool_calls
    assert [(c.id, json.loads(c.function.arguments)["city"]) for c in calls] == [
        ("a", "Paris"),
        ("b", "Rome"),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage.total_tokens == 16
    assert {labels["kind"] for labels in told} == kinds
    assert {
        kind for kind, model, harness in counted if (model, harness) == ("m", "scripted")
    } == kinds


async def test_a_clean_stream_counts_no_repair() -> None:
    """What needs no mending is not counted as mended."""
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        async with sdk.chat.completions.stream(model="m", messages=HI) as stream:
            final = await stream.get_final_completion()
        await check_idle(rig)
        assert not rig.metrics.repairs
    assert (final.choices[0].message.content, final.usage) == ("hello", None)


@pytest.mark.parametrize("script", [say(OUT_OF_MEMORY), say(BROKEN)], ids=["error", "no-end"])
async def test_a_broken_chat_stream_raises(script: Script) -> None:
    """An engine's error in mid-stream and a missing end are exceptions, after the text that came."""
    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        stream = await sdk.chat.completions.create(model="m", messages=HI, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "It is"
        with pytest.raises(
            openai.APIError, match=r"CUDA out of memory|before the response was complete"
        ):
            await anext(stream)
        await check_idle(rig)


# -- responses -----------------------------------------------------------------------------------


async def test_a_streamed_response_has_its_items_and_events_in_order() -> None:
    """responses.stream accumulates reasoning, text and calls."""
    tool = {"type": "function"} | FUNCTION
    async with (
        scripted_engine(say(TALK)) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        async with sdk.responses.stream(model="m", input="hi", tools=[tool]) as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        await check_idle(rig)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response.output_text == "It is süß 😀."
    assert [json.loads(i.arguments)["city"] for i in response.output[2:]] == ["Paris", "Rome"]
    assert response.usage.total_tokens == 16


async def test_a_whole_response_is_the_same_response() -> None:
    """responses.create without a stream reads the engine's whole answer."""
    async with (
        scripted_engine(answer(completion("hello"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        response = await sdk.responses.create(model="m", input="hi", instructions="be brief")
        sent = asked(engine.calls[0])
    assert (response.output_text, response.status) == ("hello", "completed")
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("wanted", "sent_choice", "sent_tools"),
    [
        ({"type": "function", "function": {"name": "weather"}}, "required", ["weather"]),
        ({"type": "function", "function": {"name": "lost"}}, None, ["weather", "now"]),
        ("auto", None, ["weather", "now"]),
    ],
)
async def test_a_named_tool_is_called_where_the_engine_knows_no_names(
    wanted: object, sent_choice: str | None, sent_tools: list[str]
) -> None:
    """llama.cpp reads the object as "auto": programs that parse the call would get prose."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        rig.fleet.ready("m")[0].traits = LLAMACPP
        stream = await sdk.chat.completions.create(
            model="m", messages=HI, tools=tools, tool_choice=wanted, stream=True
        )
        assert [piece async for piece in stream]
        sent = asked(engine.calls[0])
    assert sent["tool_choice"] == (sent_choice or wanted)
    assert [tool["function"]["name"] for tool in sent["tools"]] == sent_tools


async def test_an_engines_word_on_repeating_reaches_the_client() -> None:
    """An engine's 429 keeps its Retry-After, in OpenAI's and in Anthropic's shape."""

    async def busy(call: Call) -> None:
        refused = http_response(b'{"error":{"message":"full"}}', b"429 Too Many Requests")
        await call.send(refused.replace(b"\r\n", b"\r\nretry-after: 3\r\n", 1))

    body = {"model": "m", "max_tokens": 5, "messages": HI}
    async with (
        scripted_engine(busy) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")


async def test_an_engines_refusal_does_not_claim_to_be_ours() -> None:
    """Said inside a stream that comments have kept alive, it is still the engine's."""

    async def late(call: Call) -> None:
        await told.wait()
        await call.send(http_response(b'{"error":{"message":"bad grammar"}}', b"400 Bad Request"))

    told = asyncio.Event()
    soon = GatewaySection(prefill_comment_after_s=0.01)
    body = {"model": "m", "messages": HI, "stream": True}
    async with (
        scripted_engine(late) as engine,
        running_proxy({"m": engine.url}, settings=soon) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as refused,
    ):
        said = b""
        async for piece in refused.aiter_bytes():
            told.set()
            said += piece
    assert b"bad grammar" in said
    assert b"src" not in said


async def test_a_response_that_was_kept_elsewhere_is_a_clear_mistake() -> None:
    """previous_response_id is a 400 that names itself, because nothing is kept."""
    async with running_proxy({"m": "http://127.0.0.1:1"}) as rig, gpt(rig.url) as sdk:
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            await sdk.responses.create(model="m", input="hi", previous_response_id="resp_1")


async def test_a_broken_response_fails_in_its_own_events() -> None:
    """The stream ends with response.failed and the engine's reason."""
    async with (
        scripted_engine(say(OUT_OF_MEMORY)) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        stream = await sdk.responses.create(model="m", input="hi", stream=True)
        events = [event async for event in stream]
        await check_idle(rig)
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "CUDA out of memory"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_of_responses_that_leaves_ends_the_engines_work(streamed: bool) -> None:
    """The engine's connection closes, before the first byte too, and nothing stays counted."""
    async with (
        scripted_engine(silent) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        asking = asyncio.create_task(sdk.responses.create(model="m", input="hi", stream=streamed))
        await engine.call(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await check_idle(rig)


async def test_a_response_is_kept_alive_while_its_prompt_is_computed() -> None:
    """What comes before the engine's first byte is within the grammar, and the response follows."""
    go = asyncio.Event()

    async def prefill(call: Call) -> None:
        await go.wait()
        await call.send(SSE_HEAD + chunked(SAY) + b"0\r\n\r\n")

    async with (
        scripted_engine(prefill) as engine,
        running_proxy(
            {"m": engine.url}, settings=GatewaySection(prefill_comment_after_s=0.1)
        ) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
        http.stream(
            "POST", "/v1/responses", json={"model": "m", "input": "hi", "stream": True}
        ) as stream,
    ):
        pieces = stream.aiter_bytes()
        data = await anext(pieces)
        go.set()
        data += b"".join([piece async for piece in pieces])
    told = responses_told(data)
    assert [block[1] for block in told.blocks] == ["hello"]


# -- other routes --------------------------------------------------------------------------------


async def test_embeddings_pass_with_the_clients_name_for_the_model() -> None:
    """The SDK's own encoding goes to the engine and comes back as numbers."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
    body = {"object": "list", "data": [vector], "model": "m", "usage": usage(3, 0)}
    async with (
        scripted_engine(answer(body)) as engine,
        running_proxy(
            {"m": engine.url}, model_configs=[ModelConfig(id="m", harness="x", aliases=("e",))]
        ) as rig,
        gpt(rig.url) as sdk,
    ):
        found = await sdk.embeddings.create(model="e", input="hi", encoding_format="float")
        assert found.data[0].embedding == [0.5, -1.0]
        assert asked(engine.calls[0])["model"] == "m"
        await check_idle(rig)
        assert rig.metrics.totals("m").tokens_in == 3


async def test_a_recording_goes_through_as_a_form() -> None:
    """audio.transcriptions reaches the engine of the model that the form names, byte for byte."""
    sound = bytes(range(256)) * 40
    async with (
        scripted_engine(answer({"text": "hello"})) as engine,
        running_proxy({"whisper": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        found = await sdk.audio.transcriptions.create(model="whisper", file=("a.wav", sound))
        assert found.text == "hello"
        assert sound in engine.calls[0].body
        assert engine.calls[0].head.startswith(b"POST /v1/audio/transcriptions ")


async def test_speech_comes_back_as_bytes() -> None:
    """audio.speech streams what the engine says, whatever it is."""

    async def speak(call: Call) -> None:
        await call.send(http_response(b"\x00\xffmp3", kind=b"audio/mpeg"))

    async with (
        scripted_engine(speak) as engine,
        running_proxy({"tts": engine.url}) as rig,
        gpt(rig.url) as sdk,
    ):
        sound = await sdk.audio.speech.create(model="tts", voice="a", input="hi")
        assert sound.content == b"\x00\xffmp3"


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/rerank", "/v1/images/generations", "/tokenize", "/detokenize"]
)
async def test_other_routes_pass_by_the_model_that_they_name(path: str) -> None:
    """The engine gets the path and the body as they came, and its answer comes back."""
    body = {"model": "m", "query": "q", "documents": ["a"], "prompt": "p"}
    async with (
        scripted_engine(answer({"results": [1]})) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        assert (await http.post(path, json=body)).json() == {"results": [1]}
        assert asked(engine.calls[0]) == body
        assert engine.calls[0].head.startswith(b"POST %b " % path.encode())


async def test_coheres_path_is_asked_where_engines_have_it() -> None:
    """Its client asks /v2/rerank with the fields of /v1/rerank."""
    async with (
        scripted_engine(answer({"results": [1]})) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        body = {"model": "m", "query": "q", "documents": ["a"], "top_n": 1}
        assert (await http.post("/v2/rerank", json=body)).json() == {"results": [1]}
        assert engine.calls[0].head.startswith(b"POST /v1/rerank ")
        assert asked(engine.calls[0]) == body


async def test_a_route_that_the_engine_lacks_is_told_once() -> None:
    """501 with the reason, and x-should-retry: false, so that the SDK asks the engine only once."""
    async with (
        scripted_engine(answer({"error": "no"}, b"404 Not Found")) as engine,
        running_proxy({"m": engine.url}) as rig,
        gpt(rig.url).with_options(max_retries=2) as sdk,
    ):
        with pytest.raises(openai.InternalServerError, match="has no /v1/embeddings") as caught:
            await sdk.embeddings.create(model="m", input="hi")
        assert caught.value.status_code == 501
        assert len(engine.calls) == 1


# -- names and parameters ------------------------------------------------------------------------


@pytest.fixture
async def ruled() -> AsyncIterator[tuple[ProxyRig, list[Call]]]:
    """A model whose profile changes requests."""
    params = ParamsSection(
        defaults={"temperature": 0.6, "top_k": 20},
        overrides={"chat_template_kwargs": {"deep": True}},
        strip=("logit_bias",),
        clamp_max_tokens=True,
    )
    model_config = ModelConfig(
        id="org/m", harness="x", context=1000, aliases=("gpt-*", "claude-*"), params=params
    )
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"org/m": engine.url}, model_configs=[model_config]) as rig,
    ):
        yield rig, engine.calls


@pytest.mark.parametrize("name", ["gpt-9", "org/m"])
async def test_a_profile_rules_the_requests_and_the_client_keeps_its_name(
    ruled: tuple[ProxyRig, list[Call]], name: str
) -> None:
    """Defaults fill, overrides replace, strips remove, the clamp cuts, and the answer echoes the client's name."""
    rig, calls = ruled
    async with gpt(rig.url) as sdk:
        stream = await sdk.chat.completions.create(
            model=name, messages=HI, stream=True, max_tokens=32000, logit_bias={"1": 5}
        )
        models = {piece.model async for piece in stream}
    sent = asked(calls[0])
    assert models == {name}
    assert sent["model"] == "org/m"
    assert (sent["temperature"], sent["top_k"]) == (0.6, 20)
    assert sent["chat_template_kwargs"] == {"deep": True}
    assert "logit_bias" not in sent
    assert 900 < sent["max_tokens"] < 1000


async def test_what_the_client_says_beats_a_default(ruled: tuple[ProxyRig, list[Call]]) -> None:
    """A field of the client's stays, through every dialect, and a request within the context is not cut."""
    rig, calls = ruled
    body = {"model": "claude-x", "max_tokens": 7, "messages": HI, "temperature": 0, "stream": True}
    async with httpx.AsyncClient(base_url=rig.url) as http:
        answered = await http.post("/v1/messages", json=body)
    sent = asked(calls[0])
    assert b'"model":"claude-x"' in answered.content
    assert (sent["temperature"], sent["top_k"], sent["max_tokens"]) == (0, 20, 7)


async def test_the_clamp_knows_the_instances_context() -> None:
    """What the instance takes counts where it is known, the profile's context elsewhere."""
    model_config = ModelConfig(
        id="m", harness="x", context=5000, params=ParamsSection(clamp_max_tokens=True)
    )
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"m": engine.url}, model_configs=[model_config]) as rig,
        gpt(rig.url) as sdk,
    ):
        for context in (None, 1000):
            rig.report("n1")
            rig.report("n1", ready("m-0", "m", engine.url).model_copy(update={"context": context}))
            stream = await sdk.chat.completions.create(
                model="m", messages=HI, stream=True, max_tokens=32000
            )
            assert [piece async for piece in stream]
        clamped = [asked(call)["max_tokens"] for call in engine.calls]
    assert 4900 < clamped[0] < 5000
    assert 900 < clamped[1] < 1000
