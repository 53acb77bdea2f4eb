"""The proxy between raw clients and scripted engines."""

from __future__ import annotations

import asyncio
import gc
import json

import httpx
import pytest
from rigs.engine import (
    CHUNK,
    COMPLETION,
    DONE,
    LAST,
    SSE_HEAD,
    STREAM,
    USAGE,
    Call,
    answer_stream,
    chunked,
    http_response,
    scripted_engine,
)
from rigs.lazy_import import openai
from rigs.proxy import read_cut_stream, running_proxy

from cortex_common.config.access import KeyEntry
from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import GatewaySection
from cortex_common.schema.requests import RequestState
from cortex_http.connection import Connection
from cortex_http.server_protocol import HttpProtocol
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.timeouts import check_timeouts

CHAT = "/v1/chat/completions"
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def request(body: bytes, *, path: str = CHAT, extra: bytes = b"") -> bytes:
    """Return a raw HTTP/1.1 request."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (path.encode(), extra, len(body)) + body


async def test_a_stream_reaches_the_client_byte_for_byte():
    """The client reads the engine's bytes unchanged, and the instance's count returns to zero."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY, headers={"x-request-id": "mine"})
        assert answer.content == STREAM
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["x-cortex-node"] == "n1"
        assert answer.headers["x-cortex-instance"] == "m-0"
        await rig.wait_idle()
        assert rig.fleet.snapshot.instances()[0].in_flight == 0
        assert rig.metrics.totals("m").tokens_in == 7
        assert rig.metrics.totals("m").tokens_out == 3


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}])
async def test_usage_is_counted_and_sent_only_to_clients_that_request_it(options):
    """A client that did not request usage gets the stream without the usage chunk; the gateway counts it."""
    body = {k: v for k, v in BODY.items() if k != "stream_options"} | options
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=body)
        assert answer.content == STREAM.replace(USAGE, b"")
        sent = json.loads((await engine.call(0)).body)
        assert sent == body | {"stream_options": {"include_usage": True}}
        await rig.wait_idle()
        assert rig.metrics.totals("m").tokens_out == 3


async def test_pieces_arrive_one_by_one():
    """Each chunk reaches the client before the engine sends the next."""

    async def slowly(call: Call) -> None:
        await call.send(SSE_HEAD)
        for word in (b"a", b"b"):
            await call.send(chunked(CHUNK % word))
            await steps.get()
        await call.send(chunked(LAST, USAGE, DONE), b"0\r\n\r\n")

    steps: asyncio.Queue[None] = asyncio.Queue()
    async with (
        scripted_engine(slowly) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
        client.stream("POST", CHAT, json=BODY) as answer,
    ):
        pieces = answer.aiter_raw()
        assert await anext(pieces) == CHUNK % b"a"
        steps.put_nowait(None)
        assert await anext(pieces) == CHUNK % b"b"
        steps.put_nowait(None)
        assert b"".join([p async for p in pieces]) == LAST + USAGE + DONE


async def test_the_engine_gets_the_body_as_it_came_and_no_credentials():
    """Spacing and unknown fields of a body are kept; the client's key and cookies are not forwarded."""
    body = b'{ "model" : "m","zz":[1.0,1e3], "messages":[] }'
    async with (
        scripted_engine(lambda call: call.send(http_response(COMPLETION))) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        headers = {"authorization": "Bearer sk-1", "cookie": "a=b", "x-conversation-id": "c"}
        answer = await client.post(CHAT, content=body, headers=headers)
        assert answer.json() == json.loads(COMPLETION)
        call = await engine.call(0)
        assert call.body == body
        head = call.head.lower()
        for kept_back in (b"sk-1", b"cookie", b"x-conversation-id"):
            assert kept_back not in head


async def test_an_alias_is_rewritten_in_place():
    """A request for an alias reaches the engine with the model's id and is otherwise unchanged."""
    body = b'{"messages":[{"role":"user","content":"\\"model\\": \\"nick\\""}], "model": "nick"}'
    model_config = ModelConfig(id="m", harness="scripted", aliases=("nick",))
    async with (
        scripted_engine(lambda call: call.send(http_response(COMPLETION))) as engine,
        running_proxy({"m": engine.url}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        await client.post(CHAT, content=body)
        assert (await engine.call(0)).body == body.replace(b'"model": "nick"', b'"model": "m"')


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_body"),
        (b"{", 400, "malformed_body"),
        (b"[]", 400, "malformed_body"),
        (b'{"messages":[]}', 400, "missing_model"),
        (b'{"model":""}', 400, "missing_model"),
        (b'{"model":7}', 400, "invalid_request"),
        (b'{"model":"m","stream":"yes"}', 400, "invalid_request"),
        (b'{"model":"mm"}', 404, "model_not_found"),
        (b'{"model":"m","x":"' + b"y" * (1 << 20) + b'"}', 413, "body_too_large"),
    ],
)
async def test_a_bad_request_gets_the_reason(body, status, code):
    """Each bad body gets its status and code in OpenAI's shape, and reaches no engine."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}, settings=GatewaySection(max_body_mb=1)) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, content=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["src"]) == (status, code, "cortex")
        assert engine.calls == []
        await rig.wait_idle()


async def test_an_unknown_model_is_answered_with_the_nearest_names():
    """The hint suggests the nearest route."""
    model_config = ModelConfig(id="Qwen/Qwen3-32B", harness="scripted")
    async with (
        running_proxy({}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        error = (await client.post(CHAT, json=BODY | {"model": "qwen3-32"})).json()["error"]
        assert error["nearest"] == ["Qwen/Qwen3-32B"]
        assert "Qwen/Qwen3-32B" in error["hints"][0]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_before_the_first_byte_ends_the_request_upstream(streamed):
    """If the client disconnects before the response, the engine's connection closes."""
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(request(json.dumps(BODY | {"stream": streamed}).encode()))
        await engine.call(0)
        writer.close()
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await rig.wait_idle()
        assert rig.fleet.snapshot.instances()[0].in_flight == 0
        assert rig.context.pool.live == 0


async def test_a_client_that_leaves_in_mid_stream_ends_the_request_upstream():
    """If the client disconnects in mid-stream, the engine's connection closes."""

    async def forever(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(CHUNK % b"a"))
        await call.wait_closed()

    async with (
        scripted_engine(forever) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(request(json.dumps(BODY).encode()))
        await reader.readuntil(b'"a"')
        writer.close()
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await rig.wait_idle()


@pytest.mark.parametrize(("path", "end"), [(CHAT, b"[DONE]"), ("/v1/messages", b"message_stop")])
async def test_a_client_that_disconnects_after_the_last_event_is_not_cancelled(path, end):
    """A client that disconnects after the last event, before the end of the body, does not count as cancelled."""

    async def dallying(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(STREAM))
        await call.wait_closed()

    async with (
        scripted_engine(dallying) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(request(json.dumps(BODY | {"max_tokens": 9}).encode(), path=path))
        await reader.readuntil(end)
        writer.close()
        await rig.wait_idle()
        assert rig.metrics.disconnects == 0
        assert rig.metrics.totals("m").errors == 0


async def test_a_client_that_leaves_while_it_waits_for_a_load_waits_no_longer():
    """A load is cancelled when its only client disconnects."""
    model_config = ModelConfig(id="m", harness="scripted")
    async with running_proxy({}, model_configs=[model_config]) as rig:
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(request(json.dumps(BODY).encode()))
        await rig.loads.requested.wait()
        writer.close()
        await rig.wait_idle()
        async with asyncio.timeout(5):
            await rig.loads.no_waiters.wait()


async def test_a_request_for_an_unloaded_model_waits_for_the_load():
    """A request for a loading model is answered once it is ready, and marked as a cold start."""
    model_config = ModelConfig(id="m", harness="scripted")
    async with (
        scripted_engine() as engine,
        running_proxy({}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        head = asyncio.ensure_future(client.post(CHAT, json=BODY))
        await rig.loads.requested.wait()
        rig.loads.outcome.set_result(("m-1", engine.url))
        answer = await head
        assert answer.content == STREAM
        assert answer.headers["x-cortex-cold-start"] == "true"
        assert rig.metrics.series("m", "n1").cold_starts == 1


async def test_a_failed_load_is_an_error_with_its_reason():
    """A request that waits for a load that fails gets 503 with the engine's reason."""
    model_config = ModelConfig(id="m", harness="scripted")
    async with (
        running_proxy({}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        rig.loads.outcome.set_result(("out of memory", ""))
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "out of memory"
        assert answer.json()["error"]["code"] == "load_failed"


async def test_comments_keep_a_stream_alive_during_a_load():
    """A waiting streamed request receives comments, which SDKs skip, and then the stream."""
    model_config = ModelConfig(id="m", harness="scripted")
    settings = GatewaySection(cold_start_comment_after_s=0.01)
    async with (
        scripted_engine() as engine,
        running_proxy({}, model_configs=[model_config], settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
        client.stream("POST", CHAT, json=BODY) as answer,
    ):
        pieces = answer.aiter_raw()
        assert (await anext(pieces)).startswith(b": ")
        assert answer.headers["x-cortex-cold-start"] == "true"
        assert "x-cortex-queue-ms" not in answer.headers
        rig.loads.outcome.set_result(("m-1", engine.url))
        rest = b"".join([p async for p in pieces])
        assert rest.endswith(STREAM)


async def test_an_engines_comments_are_no_tokens():
    """Comments of an engine that processes the prompt do not count as its first token."""

    async def prefill(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(b": wait\n\n"))
        await go.wait()
        await call.send(chunked(STREAM) + b"0\r\n\r\n")

    go = asyncio.Event()
    async with (
        scripted_engine(prefill) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = asyncio.create_task(client.post(CHAT, json=BODY))
        await engine.call(0)
        (in_flight,) = rig.inflight.requests
        while not in_flight.record.status:
            await asyncio.sleep(0)
        assert in_flight.state is RequestState.PREFILL
        go.set()
        assert (await answer).content == b": wait\n\n" + STREAM
        assert in_flight.record.first_byte is not None


async def test_a_load_that_fails_after_comments_ends_in_an_error_event():
    """If the load fails after the 200 was sent, the error is an event and no [DONE] follows."""
    model_config = ModelConfig(id="m", harness="scripted")
    settings = GatewaySection(cold_start_comment_after_s=0.01)
    async with (
        running_proxy({}, model_configs=[model_config], settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
        client.stream("POST", CHAT, json=BODY) as answer,
    ):
        pieces = answer.aiter_raw()
        await anext(pieces)
        rig.loads.outcome.set_result(("no memory", ""))
        rest = await read_cut_stream(pieces)
        event = json.loads(rest.rpartition(b"data: ")[2])
        assert event["error"]["message"] == "no memory"
        assert b"[DONE]" not in rest


async def test_an_engine_that_dies_in_mid_stream_ends_in_an_error_event():
    """If the engine breaks in mid-event, the partial event is dropped and an error event follows, without [DONE]."""

    async def die(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(CHUNK % b"a", b'data: {"half'))
        call.writer.transport.abort()

    async with (
        scripted_engine(die) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
        client.stream("POST", CHAT, json=BODY) as answer,
    ):
        content = await read_cut_stream(answer.aiter_raw())
        first, error, rest = content.split(b"\n\n")
        assert first + b"\n\n" == CHUNK % b"a"
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
        assert rest == b""
        await rig.wait_idle()
        assert rig.metrics.totals("m").errors == 1


async def test_a_stream_without_done_ends_in_an_error_event():
    """A stream that ends without a finish, as mistral.rs's do on unload, is an error for the client."""

    async def stop(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(CHUNK % b"a"), b"0\r\n\r\n")

    async with (
        scripted_engine(stop) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        stream = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="before the response was complete"):
            await anext(stream)


async def test_a_whole_response_has_no_token_rate():
    """A whole response counts as one arrival of all tokens, in however many reads it comes."""

    async def in_pieces(call: Call) -> None:
        answer = http_response(COMPLETION)
        await call.send(answer[:-9])
        loop = asyncio.get_running_loop()
        while not any(
            (e.record.first_byte or loop.time()) < loop.time() for e in rig.inflight.requests
        ):
            await asyncio.sleep(0)
        await call.send(answer[-9:])

    async with (
        scripted_engine(in_pieces) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        assert (await client.post(CHAT, json=BODY | {"stream": False})).status_code == 200
        await rig.wait_idle()
        series = rig.metrics.series("m", "n1")
        assert (series.tokens_out, sum(series.ttft.counts)) == (3, 1)
        assert sum(series.tokens_per_second.counts) == sum(series.inter_token.counts) == 0
        assert rig.context.access_log.last(1)[0].tok_per_sec is None


async def test_an_incomplete_json_response_is_a_502():
    """An incomplete JSON response does not reach the client."""

    async def die(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        call.writer.transport.abort()

    async with (
        scripted_engine(die) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY | {"stream": False})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        await rig.wait_idle()


async def test_an_engine_that_dies_in_a_large_answer_cuts_the_connection():
    """If an engine breaks after part of a body was forwarded, the client's body is left incomplete."""

    async def die(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * (2 << 20))
        call.writer.transport.abort()

    async with (
        scripted_engine(die) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/embeddings", json={"model": "m", "input": "x"})
        await rig.wait_idle()


async def test_a_request_moves_on_to_another_instance_before_the_first_byte():
    """If one instance refuses connections, the other answers."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": ["http://127.0.0.1:1", engine.url]}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY)
        assert answer.content == STREAM
        assert answer.headers["x-cortex-instance"] == "m-1"
        assert answer.headers["x-cortex-route"] == "retry"
        await rig.wait_idle()
        assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0, 0]


async def test_no_instance_that_answers_is_a_502():
    """If all instances refuse connections, the error lists each failure."""
    async with (
        running_proxy({"m": "http://127.0.0.1:1"}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 502
        assert "can't be reached" in answer.json()["error"]["message"]


async def test_a_kept_connection_that_was_closed_is_replaced_silently():
    """If the engine closes an idle connection as the next request is sent, the request is sent again."""

    async def once(call: Call) -> None:
        if len(engine.calls) == 2 and call.writer is engine.calls[0].writer:
            call.writer.transport.abort()
        else:
            await answer_stream(call)

    async with (
        scripted_engine(once) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for _ in range(2):
            assert (await client.post(CHAT, json=BODY)).content == STREAM
        assert len(engine.calls) == 3


async def test_an_engines_own_error_is_passed_on():
    """An engine's error keeps its status, message and type; fields that OpenAI's errors have are added."""
    error = {"message": "prompt too long", "type": "invalid_request_error"}
    body = json.dumps({"error": error}).encode()
    async with (
        scripted_engine(lambda call: call.send(http_response(body, b"400 Bad Request"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 400
        assert answer.json()["error"].items() >= error.items()
        assert rig.metrics.series("m", "n1").errors["engine_400"] == 1


async def test_a_silent_engine_is_given_up():
    """If the engine sends no first byte within the limit, the client gets 504."""
    settings = GatewaySection(first_byte_timeout_s=0.2)
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answer = await client.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


async def test_a_stream_may_last_as_long_as_its_events_come():
    """The idle timeout counts from the last event, and ends a silent stream with an error."""

    async def slowly(call: Call) -> None:
        await call.send(SSE_HEAD)
        for word in (b"a", b"b", b"c"):
            await call.send(chunked(CHUNK % word))
            await steps.get()
        await call.wait_closed()

    steps: asyncio.Queue[None] = asyncio.Queue()
    settings = GatewaySection(idle_timeout_s=100)
    async with (
        scripted_engine(slowly) as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
        client.stream("POST", CHAT, json=BODY) as answer,
    ):
        pieces, began = answer.aiter_raw(), asyncio.get_running_loop().time()
        in_flight = rig.inflight.requests.pop()  # only this test uses it
        for number, word in enumerate((b"a", b"b", b"c")):
            assert await anext(pieces) == CHUNK % word
            check_timeouts(in_flight, began + 60 * number)
            assert not in_flight.finished
            steps.put_nowait(None)
        check_timeouts(in_flight, began + 300)
        assert b"silent for 100 s" in await anext(pieces)


async def stalled(sent: list[int]) -> int:
    """Wait until nothing more is sent, and return the number of writes."""
    before, steady = -1, 0
    while steady < 50:
        before, steady = len(sent), steady + 1 if before == len(sent) else 0
        await asyncio.sleep(0.01)  # a stall is visible only after a wait
    return before


async def test_a_slow_reader_holds_the_engine_back():
    """A client that does not read stops the engine, and later gets every byte."""
    total = 64 << 20

    async def flood(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % total
        )
        piece = b"x" * (1 << 20)
        for _ in range(64):
            await call.send(piece)
            sent.append(len(piece))

    sent: list[int] = []
    async with (
        scripted_engine(flood) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1 << 16)
        writer.write(request(json.dumps(BODY).encode(), path="/v1/embeddings"))
        await reader.readuntil(b"\r\n\r\n")
        assert await stalled(sent) < 32
        got = 0
        while got < total:  # chunk framing adds a little
            got += len(await reader.read(1 << 16))
        writer.close()
        await rig.wait_idle()


async def test_a_client_that_does_not_read_is_disconnected():
    """A connected client that does not read keeps its engine no longer than the idle timeout."""

    async def flood(call: Call) -> None:
        await call.send(SSE_HEAD)
        while True:
            await call.send(chunked(CHUNK % (b"x" * (1 << 16))))
            sent.append(1)

    sent: list[int] = []
    settings = GatewaySection(idle_timeout_s=100)
    async with (
        scripted_engine(flood) as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1 << 16)
        writer.write(request(json.dumps(BODY).encode()))
        began = asyncio.get_running_loop().time()
        await reader.readuntil(b"\r\n\r\n")
        await stalled(sent)
        (in_flight,) = rig.inflight.requests
        check_timeouts(in_flight, began + 99)
        assert not in_flight.finished
        check_timeouts(in_flight, asyncio.get_running_loop().time() + 101)
        assert rig.metrics.disconnects == 1
        assert rig.metrics.series("m", "n1").errors["client_disconnected"] == 1
        writer.close()
        await rig.wait_idle()


async def test_pipelined_requests_are_answered_in_order():
    """Two requests in one write get two responses in order."""
    bodies = [json.dumps(BODY | {"input": n}).encode() for n in (1, 2)]

    async def echo(call: Call) -> None:
        await call.send(http_response(call.body))

    async with (
        scripted_engine(echo) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"".join(request(body, path="/v1/embeddings") for body in bodies))
        for body in bodies:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
        writer.close()
        await rig.wait_idle()


async def test_expect_100_continue_is_honoured():
    """A client that sends Expect: 100-continue gets 100 Continue."""
    body = json.dumps(BODY | {"stream": False}).encode()
    async with (
        scripted_engine(lambda call: call.send(http_response(COMPLETION))) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(request(body, extra=b"expect: 100-continue\r\n")[: -len(body)])
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(body)
        assert b"200 OK" in await reader.readuntil(COMPLETION)
        writer.close()
        await rig.wait_idle()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + http_response(b'{"a":1}'),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7;x=y\r\n{"a":1}\r\n0\r\nt: 1\r\n\r\n',
        b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"a":1}',
        b'HTTP/1.0 200 OK\r\n\r\n{"a":1}',
    ],
    ids=["interim", "extensions-and-trailers", "close-delimited", "http-1.0"],
)
async def test_any_framing_of_the_engine_is_understood(answer):
    """Interim responses, chunk extensions, trailers and close-delimited bodies are all decoded to the body."""

    async def script(call: Call) -> None:
        await call.send(answer)
        if b"close" in answer or b"1.0" in answer:
            call.writer.close()

    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        got = await client.post("/v1/embeddings", json={"model": "m", "input": "x"})
        assert got.content == b'{"a":1}'
        await rig.wait_idle()


async def test_bytes_after_an_answer_never_reach_another_client():
    """Bytes after an engine's response close its connection and are dropped."""

    async def surplus(call: Call) -> None:
        await call.send(http_response(b'{"a":1}') + http_response(b'{"smuggled":1}'))

    async with (
        scripted_engine(surplus) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for _ in range(2):
            assert (await client.post("/v1/embeddings", json=BODY)).content == b'{"a":1}'
        assert engine.calls[0].writer is not engine.calls[1].writer


async def test_two_hundred_concurrent_streams_are_complete():
    """Every stream is complete, and every count returns to zero."""
    async with (
        scripted_engine() as engine,
        running_proxy(
            {"a": engine.url, "b": engine.url, "c": engine.url},
            # also on a busy host
            settings=GatewaySection(prefill_comment_after_s=0, connect_timeout_s=60),
        ) as rig,
        httpx.AsyncClient(
            base_url=rig.url, limits=httpx.Limits(max_connections=200), timeout=60
        ) as client,
    ):
        answers = await asyncio.gather(
            *(client.post(CHAT, json=BODY | {"model": "abc"[n % 3]}) for n in range(200))
        )
        assert {a.content for a in answers} == {STREAM}
        await rig.wait_idle()
        assert sum(i.in_flight for i in rig.fleet.snapshot.instances()) == 0
        assert rig.metrics.totals("a").requests == 67


@pytest.mark.parametrize(
    ("path", "words", "code"),
    [
        (CHAT, "image input is not supported", "invalid_request"),
        (
            "/v1/embeddings",
            "input (812 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            "context_length_exceeded",
        ),
        (
            "/detokenize",
            "vector::_M_range_check: __n (which is 999) >= this->size() (which is 399)",
            "invalid_request",
        ),
    ],
)
async def test_requests_that_no_engine_could_serve_are_not_held_against_the_instance(
    path, words, code
):
    """llama.cpp's 500 for an image to a text model does not open the circuit breaker."""

    async def blind(call: Call) -> None:
        said = b'{"error":{"code":500,"message":"%s","type":"server_error"}}' % words.encode()
        await call.send(http_response(said, b"500 Internal Server Error"))

    async with (
        scripted_engine(blind) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        answers = [await client.post(path, json=BODY) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 400, 400]
        assert answers[0].json()["error"]["code"] == code
        await rig.wait_idle()
        assert len(rig.fleet.ready("m")) == 1


async def test_an_instance_that_keeps_failing_is_left_alone_and_tried_again():
    """After three consecutive failures requests go elsewhere; after the pause one request tries the instance again."""

    async def sick(call: Call) -> None:
        if healthy.is_set():
            await answer_stream(call)
        else:
            await call.send(http_response(b"{}", b"500 Internal Server Error"))

    healthy = asyncio.Event()
    async with (
        scripted_engine(sick) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        statuses = [(await client.post(CHAT, json=BODY)).status_code for _ in range(3)]
        assert statuses == [500, 500, 500]
        await rig.wait_idle()
        assert (
            rig.fleet.snapshot.instances()[0].failing == "The engine answered 500 without a reason"
        )
        assert rig.fleet.ready("m") == []
        healthy.set()
        async with asyncio.timeout(5):
            while not rig.fleet.ready("m"):
                await asyncio.sleep(0.01)
        assert (await client.post(CHAT, json=BODY)).content == STREAM
        await rig.wait_idle()
        assert rig.fleet.snapshot.instances()[0].failing is None


async def test_client_errors_do_not_open_the_circuit_breaker():
    """No number of 400 responses takes an instance out of service."""
    async with (
        scripted_engine(lambda call: call.send(http_response(b"{}", b"400 Bad Request"))) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for _ in range(10):
            assert (await client.post(CHAT, json=BODY)).status_code == 400
        assert rig.fleet.snapshot.instances()[0].failing is None


async def test_an_engine_that_dallies_after_its_finish_keeps_no_anthropic_client_waiting():
    """Two seconds after the finish reason the response ends, even if the engine sends nothing more."""

    async def dally(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(CHUNK % b"a", LAST))
        await call.wait_closed()

    body = {k: v for k, v in BODY.items() if k != "stream_options"} | {"max_tokens": 5}
    async with (
        scripted_engine(dally) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=20) as client,
    ):
        answer = await client.post("/v1/messages", json=body)
        assert answer.text.endswith('data: {"type":"message_stop"}\n\n')
        async with asyncio.timeout(5):
            await engine.wait_idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_finished_request_needs_no_garbage_collection(stream):
    """A finished request is freed by reference counting, without garbage collection."""

    async def answer(call: Call) -> None:
        await (answer_stream(call) if stream else call.send(http_response(COMPLETION)))

    async with (
        scripted_engine(answer) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for _ in range(3):
            await client.post(CHAT, json=BODY | {"stream": stream})
        await rig.wait_idle()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await client.post(CHAT, json=BODY | {"stream": stream})
            await rig.wait_idle()
            left = [
                o
                for o in gc.get_objects()
                if isinstance(o, ProxyRequest) and o.context is rig.context
            ]
        finally:
            gc.enable()
        assert len(left) <= 1  # the last connection is referenced until the next one


async def test_a_closed_connection_needs_no_garbage_collection():
    """Closed connections of clients and engines are freed by reference counting."""
    async with scripted_engine() as engine, running_proxy({"m": engine.url}) as rig:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                async with httpx.AsyncClient(base_url=rig.url) as client:
                    await client.post(CHAT, json=BODY)
            await rig.wait_idle()
            rig.context.pool.close()
            async with asyncio.timeout(30):
                while any(isinstance(o, Connection | HttpProtocol) for o in gc.get_objects()):
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


@pytest.mark.parametrize("status", [b"099 Odd", b"299 Odd", b"407 Odd", b"600 Odd", b"999 Odd"])
async def test_an_odd_status_and_the_headers_of_an_upstream_stay_with_the_gateway(status):
    """The client gets a known status, an answer, and no header that would act on its browser."""
    evil = b"clear-site-data: *\r\nstrict-transport-security: max-age=9\r\nx-cortex-node: evil\r\n"

    async def answer(call: Call) -> None:
        await call.send(http_response(b"{}", status).replace(b"\r\n", b"\r\n" + evil, 1))

    async with (
        scripted_engine(answer) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        response = await client.post(CHAT, json={"model": "m", "messages": []})
        assert response.status_code in {200, 502}
        assert response.json() is not None
        assert response.headers["x-cortex-node"] == "n1"
        assert not {"clear-site-data", "strict-transport-security"} & response.headers.keys()


async def test_a_failed_load_shows_an_inference_client_no_engine_log():
    """The engine's last lines are for operators; started streams get the same error as an event."""
    access = AccessControl(Keyring())
    key = KeyEntry(name="k", hash=hash_of("k"))
    access.keyring.replace([key], (), 0.0)
    model_config = ModelConfig(id="m", harness="scripted")
    async with (
        running_proxy({}, model_configs=[model_config], access_control=access) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"x-api-key": "k"}) as client,
    ):
        rig.loads.outcome.set_result(("exited: /srv/models/secret.gguf not found", ""))
        answer = await client.post(CHAT, json=BODY)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("load_failed", "model 'm' could not be loaded")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["hints"][0]
