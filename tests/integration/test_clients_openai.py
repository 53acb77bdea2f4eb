"""The official OpenAI SDK through a gateway, against engines with the habits of real ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from clients_kit import (
    HELLO_STREAM,
    MESSAGES,
    MIXED_STREAM,
    SCHEMA,
    completion,
    json_response,
    never_respond,
    openai_client,
    request_body,
    stream_response,
)
from dialects_kit import call_delta, chunk, parse_responses_stream, sse_stream, usage, usage_chunk
from rigs.engine import SSE_HEAD, Call, Script, chunked, http_response, scripted_engine
from rigs.lazy_import import openai
from rigs.proxy import ProxyRig, read_cut_stream, ready, running_proxy

from cortex_common.config.catalogue import ModelConfig, ParamsSection
from cortex_common.config.gateway import GatewaySection
from cortex_common.schema.engine_traits import LLAMACPP
from cortex_server.metrics.exposition import GatewayCollector

FUNCTION = {"name": "weather", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
TRUNCATED_STREAM = sse_stream(chunk({"content": "It is"}), done=False)
OUT_OF_MEMORY_STREAM = (
    TRUNCATED_STREAM
    + b'data: {"error":{"code":500,"message":"CUDA out of memory","type":"server_error"}}\n\n'
)


REPAIRS_METRIC = "cortex_stream_repairs_total"


async def wait_until_idle(rig: ProxyRig) -> None:
    """Wait until no request is in flight or counted."""
    await rig.wait_idle()
    assert all(i.in_flight == 0 for i in rig.fleet.snapshot.instances())


FAULTY_STREAMS = {
    "calls all at index 0, as objects": (
        [
            chunk(call_delta(0, {"city": "Paris"}, call_id="a", name="weather")),
            chunk(call_delta(0, {"city": "Rome"}, call_id="b", name="weather")),
            chunk(finish="stop"),
            usage_chunk(),
        ],
        {"tool_call_index", "tool_arguments_object", "finish_reason_tool_calls"},
    ),
    "calls without an index, usage in the last chunk": (
        [
            chunk(call_delta(None, '{"city":"Paris"}', call_id="a", name="weather")),
            chunk(call_delta(None, '{"city":"Rome"}', call_id="b", name="weather")),
            chunk(finish="tool_calls", usage=usage()),
        ],
        {"tool_call_index", "usage_chunk_missing"},
    ),
}


@pytest.mark.parametrize(("chunks", "kinds"), FAULTY_STREAMS.values(), ids=FAULTY_STREAMS.keys())
@pytest.mark.compatibility("openai (Python)", "tools")
async def test_faulty_tool_calls_are_repaired_and_counted(
    chunks: list[dict[str, object]], kinds: set[str]
) -> None:
    """chat.completions.stream accumulates two calls, and the metrics count the repairs by harness."""
    async with (
        scripted_engine(stream_response(sse_stream(*chunks))) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        options = {"include_usage": True}
        async with sdk.chat.completions.stream(
            model="m", messages=MESSAGES, tools=TOOLS, stream_options=options
        ) as stream:
            final = await stream.get_final_completion()
        await wait_until_idle(rig)
        counted = Counter(rig.metrics.repairs)
        samples = [
            sample.labels
            for family in GatewayCollector(rig.metrics).collect()
            for sample in family.samples
            if sample.name == REPAIRS_METRIC
        ]
    calls = final.choices[0].message.tool_calls
    assert [(c.id, json.loads(c.function.arguments)["city"]) for c in calls] == [
        ("a", "Paris"),
        ("b", "Rome"),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage.total_tokens == 16
    assert {labels["kind"] for labels in samples} == kinds
    assert {
        kind for kind, model, harness in counted if (model, harness) == ("m", "scripted")
    } == kinds


@pytest.mark.compatibility("openai (Python)", "chat")
async def test_clean_stream_counts_no_repair() -> None:
    """Nothing is repaired, so nothing is counted."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        async with sdk.chat.completions.stream(model="m", messages=MESSAGES) as stream:
            final = await stream.get_final_completion()
        await wait_until_idle(rig)
        assert not rig.metrics.repairs
    assert (final.choices[0].message.content, final.usage) == ("hello", None)


@pytest.mark.parametrize(
    "script",
    [stream_response(OUT_OF_MEMORY_STREAM), stream_response(TRUNCATED_STREAM)],
    ids=["error", "no-end"],
)
@pytest.mark.compatibility("openai (Python)", "failures")
async def test_failed_chat_stream_raises(script: Script) -> None:
    """An error of the engine and a missing end are exceptions, after the text received so far."""
    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        stream = await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "It is"
        with pytest.raises(
            openai.APIError, match=r"CUDA out of memory|before the response was complete"
        ):
            await anext(stream)
        await wait_until_idle(rig)


# -- responses -----------------------------------------------------------------------------------


@pytest.mark.compatibility("openai (Python)", "responses")
async def test_streamed_response_has_items_and_events_in_order() -> None:
    """responses.stream accumulates reasoning, text and calls."""
    tool = {"type": "function"} | FUNCTION
    async with (
        scripted_engine(stream_response(MIXED_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        async with sdk.responses.stream(model="m", input="hi", tools=[tool]) as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        await wait_until_idle(rig)
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


async def test_unstreamed_response() -> None:
    """responses.create without a stream translates the engine's unstreamed response."""
    async with (
        scripted_engine(json_response(completion("hello"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        response = await sdk.responses.create(model="m", input="hi", instructions="be brief")
        sent = request_body(engine.calls[0])
    assert (response.output_text, response.status) == ("hello", "completed")
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("tool_choice", "sent_choice", "sent_tools"),
    [
        ({"type": "function", "function": {"name": "weather"}}, "required", ["weather"]),
        ({"type": "function", "function": {"name": "lost"}}, None, ["weather", "now"]),
        ("auto", None, ["weather", "now"]),
    ],
)
async def test_named_tool_choice_for_an_engine_without_it(
    tool_choice: object, sent_choice: str | None, sent_tools: list[str]
) -> None:
    """llama.cpp reads the object as "auto", so a program that parses the call would get text."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        rig.fleet.ready("m")[0].traits = LLAMACPP
        stream = await sdk.chat.completions.create(
            model="m", messages=MESSAGES, tools=tools, tool_choice=tool_choice, stream=True
        )
        assert [piece async for piece in stream]
        sent = request_body(engine.calls[0])
    assert sent["tool_choice"] == (sent_choice or tool_choice)
    assert [tool["function"]["name"] for tool in sent["tools"]] == sent_tools


async def test_engine_retry_after_reaches_the_client() -> None:
    """An engine's 429 keeps its Retry-After, in both OpenAI's and Anthropic's format."""

    async def busy(call: Call) -> None:
        refused = http_response(b'{"error":{"message":"full"}}', b"429 Too Many Requests")
        await call.send(refused.replace(b"\r\n", b"\r\nretry-after: 3\r\n", 1))

    body = {"model": "m", "max_tokens": 5, "messages": MESSAGES}
    async with (
        scripted_engine(busy) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")


async def test_late_engine_error_is_not_marked_as_the_gateways() -> None:
    """This holds in a stream that was opened by keep-alive comments."""

    async def late(call: Call) -> None:
        await opened.wait()
        await call.send(http_response(b'{"error":{"message":"bad grammar"}}', b"400 Bad Request"))

    opened = asyncio.Event()
    soon = GatewaySection(prefill_comment_after_s=0.01)
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with (
        scripted_engine(late) as engine,
        running_proxy({"m": engine.url}, settings=soon) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as refused,
    ):
        pieces = refused.aiter_raw()
        await anext(pieces)
        opened.set()
        body_received = await read_cut_stream(pieces)
    assert b"bad grammar" in body_received
    assert b"src" not in body_received


async def test_failed_response_is_an_exception() -> None:
    """It has the engine's reason."""
    async with (
        scripted_engine(stream_response(OUT_OF_MEMORY_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        stream = await sdk.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="CUDA out of memory"):
            [event async for event in stream]
        await wait_until_idle(rig)


@pytest.mark.parametrize("streamed", [True, False])
async def test_client_disconnect_cancels_the_engine(streamed: bool) -> None:
    """The engine's connection is closed, even before the first byte, and the request is no longer counted."""
    async with (
        scripted_engine(never_respond) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        request = asyncio.create_task(sdk.responses.create(model="m", input="hi", stream=streamed))
        await engine.call(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await wait_until_idle(rig)


async def test_keep_alive_during_prefill() -> None:
    """Bytes sent before the engine's first byte follow the grammar, and the response follows."""
    prefilled = asyncio.Event()

    async def prefill(call: Call) -> None:
        await prefilled.wait()
        await call.send(SSE_HEAD + chunked(HELLO_STREAM) + b"0\r\n\r\n")

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
        prefilled.set()
        data += b"".join([piece async for piece in pieces])
    parsed = parse_responses_stream(data)
    assert [block[1] for block in parsed.blocks] == ["hello"]


# -- other routes --------------------------------------------------------------------------------


@pytest.mark.compatibility("openai (Python)", "embeddings")
async def test_embeddings_use_the_client_model_name() -> None:
    """The model alias is replaced for the engine, and the usage is counted."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
    body = {"object": "list", "data": [vector], "model": "m", "usage": usage(3, 0)}
    async with (
        scripted_engine(json_response(body)) as engine,
        running_proxy(
            {"m": engine.url}, model_configs=[ModelConfig(id="m", harness="x", aliases=("e",))]
        ) as rig,
        openai_client(rig.url) as sdk,
    ):
        found = await sdk.embeddings.create(model="e", input="hi", encoding_format="float")
        assert found.data[0].embedding == [0.5, -1.0]
        assert request_body(engine.calls[0])["model"] == "m"
        await wait_until_idle(rig)
        assert rig.metrics.totals("m").tokens_in == 3


async def test_audio_transcription_form_is_forwarded() -> None:
    """audio.transcriptions reaches the engine of the model named in the form, byte for byte."""
    sound = bytes(range(256)) * 40
    async with (
        scripted_engine(json_response({"text": "hello"})) as engine,
        running_proxy({"whisper": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        found = await sdk.audio.transcriptions.create(model="whisper", file=("a.wav", sound))
        assert found.text == "hello"
        assert sound in engine.calls[0].body
        assert engine.calls[0].head.startswith(b"POST /v1/audio/transcriptions ")


async def test_speech_is_returned_as_bytes() -> None:
    """audio.speech returns the bytes that the engine sent."""

    async def speak(call: Call) -> None:
        await call.send(http_response(b"\x00\xffmp3", kind=b"audio/mpeg"))

    async with (
        scripted_engine(speak) as engine,
        running_proxy({"tts": engine.url}) as rig,
        openai_client(rig.url) as sdk,
    ):
        sound = await sdk.audio.speech.create(model="tts", voice="a", input="hi")
        assert sound.content == b"\x00\xffmp3"


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/rerank", "/v1/images/generations", "/tokenize", "/detokenize"]
)
async def test_other_routes_are_forwarded_by_model(path: str) -> None:
    """The engine gets the path and the body unchanged, and the client gets its response."""
    body = {"model": "m", "query": "q", "documents": ["a"], "prompt": "p"}
    async with (
        scripted_engine(json_response({"results": [1]})) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        assert (await http.post(path, json=body)).json() == {"results": [1]}
        assert request_body(engine.calls[0]) == body
        assert engine.calls[0].head.startswith(b"POST %b " % path.encode())


async def test_cohere_rerank_path_is_mapped() -> None:
    """Cohere's client requests /v2/rerank with the fields of /v1/rerank."""
    async with (
        scripted_engine(json_response({"results": [1]})) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as http,
    ):
        body = {"model": "m", "query": "q", "documents": ["a"], "top_n": 1}
        assert (await http.post("/v2/rerank", json=body)).json() == {"results": [1]}
        assert engine.calls[0].head.startswith(b"POST /v1/rerank ")
        assert request_body(engine.calls[0]) == body


async def test_missing_engine_route_is_not_retried() -> None:
    """It is a 501 with x-should-retry: false, so that the SDK asks the engine only once."""
    async with (
        scripted_engine(json_response({"error": "no"}, b"404 Not Found")) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url).with_options(max_retries=2) as sdk,
    ):
        with pytest.raises(openai.InternalServerError, match="has no /v1/embeddings") as caught:
            await sdk.embeddings.create(model="m", input="hi")
        assert caught.value.status_code == 501
        assert len(engine.calls) == 1


# -- names and parameters ------------------------------------------------------------------------


@pytest.fixture
async def rig_with_params() -> AsyncIterator[tuple[ProxyRig, list[Call]]]:
    """Run a model whose config changes requests."""
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
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"org/m": engine.url}, model_configs=[model_config]) as rig,
    ):
        yield rig, engine.calls


@pytest.mark.parametrize("name", ["gpt-9", "org/m"])
async def test_model_params_change_requests(
    rig_with_params: tuple[ProxyRig, list[Call]], name: str
) -> None:
    """Each kind of parameter is applied, and chunks have the client's model name."""
    rig, calls = rig_with_params
    async with openai_client(rig.url) as sdk:
        stream = await sdk.chat.completions.create(
            model=name, messages=MESSAGES, stream=True, max_tokens=32000, logit_bias={"1": 5}
        )
        models = {piece.model async for piece in stream}
    sent = request_body(calls[0])
    assert models == {name}
    assert sent["model"] == "org/m"
    assert (sent["temperature"], sent["top_k"]) == (0.6, 20)
    assert sent["chat_template_kwargs"] == {"deep": True}
    assert "logit_bias" not in sent
    assert 900 < sent["max_tokens"] < 1000


async def test_client_fields_take_precedence_over_defaults(
    rig_with_params: tuple[ProxyRig, list[Call]],
) -> None:
    """A field of the client is kept in every dialect, and max_tokens within the context is not changed."""
    rig, calls = rig_with_params
    body = {
        "model": "claude-x",
        "max_tokens": 7,
        "messages": MESSAGES,
        "temperature": 0,
        "stream": True,
    }
    async with httpx.AsyncClient(base_url=rig.url) as http:
        response = await http.post("/v1/messages", json=body)
    sent = request_body(calls[0])
    assert b'"model":"claude-x"' in response.content
    assert (sent["temperature"], sent["top_k"], sent["max_tokens"]) == (0, 20, 7)


async def test_clamp_uses_the_instance_context() -> None:
    """The context of the instance is used if known, otherwise that of the model config."""
    model_config = ModelConfig(
        id="m", harness="x", context=5000, params=ParamsSection(clamp_max_tokens=True)
    )
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}, model_configs=[model_config]) as rig,
        openai_client(rig.url) as sdk,
    ):
        for context in (None, 1000):
            rig.report("n1")
            rig.report("n1", ready("m-0", "m", engine.url).model_copy(update={"context": context}))
            stream = await sdk.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, max_tokens=32000
            )
            assert [piece async for piece in stream]
        clamped = [request_body(call)["max_tokens"] for call in engine.calls]
    assert 4900 < clamped[0] < 5000
    assert 900 < clamped[1] < 1000
