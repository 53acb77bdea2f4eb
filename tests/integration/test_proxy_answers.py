"""Answers that are not usable, or not what was asked for: tried elsewhere, converted, or reported."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

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
    Script,
    ScriptedEngine,
    answer_stream,
    chunked,
    http_response,
    scripted_engine,
)
from rigs.proxy import ProxyRig, ready, running_proxy

from cortex_common.config.access import KeyEntry
from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import RELAY_ERROR_HEADER, InstanceState
from cortex_common.schema.keys import KeyLimits
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
TURN = [{"role": "user", "content": "hi"}]
BODIES = {
    CHAT: {"model": "m", "messages": TURN},
    MESSAGES: {"model": "m", "messages": TURN, "max_tokens": 9},
    RESPONSES: {"model": "m", "input": "hi"},
}
ROUTES = list(BODIES)


@dataclass
class Pair:
    """Two instances of "m"; the first one has the first turn."""

    rig: ProxyRig
    http: httpx.AsyncClient
    first: ScriptedEngine
    second: ScriptedEngine

    async def send(self, path: str = CHAT, *, stream: bool = False) -> httpx.Response:
        """Send a request."""
        return await self.http.post(path, json=BODIES[path] | {"stream": stream})


async def answer(call: Call) -> None:
    """Answer with a stream or a whole completion, as asked."""
    if json.loads(call.body).get("stream"):
        await answer_stream(call)
    else:
        await call.send(http_response(COMPLETION))


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Run two instances behind one gateway; the second one works."""
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(scripted_engine(answer)) for _ in range(2)]
        rig = await stack.enter_async_context(running_proxy({"m": [first.url, second.url]}))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=rig.url, timeout=30))
        yield Pair(rig, http, first, second)


def text_of(path: str, body: bytes, *, stream: bool) -> str:
    """Return the text of an answer in any dialect."""
    if not stream:
        whole = json.loads(body)
        match path:
            case "/v1/chat/completions":
                return str(whole["choices"][0]["message"]["content"])
            case "/v1/messages":
                return str(whole["content"][0]["text"])
            case _:
                return str(whole["output"][0]["content"][0]["text"])
    text = ""
    for block in body.split(b"\n\n"):
        data = block.partition(b"data: ")[2]
        if data.startswith(b"{"):
            event = json.loads(data)
            if path == CHAT and event["choices"]:
                text += event["choices"][0]["delta"].get("content") or ""
            elif event.get("type") == "content_block_delta":
                text += event["delta"]["text"]
            elif event.get("type") == "response.output_text.delta":
                text += event["delta"]
    return text


BAD = {
    **{
        str(status): http_response(b'{"error":{"message":"x"}}', b"%d Nope" % status)
        for status in (401, 402, 403, 404, 408, 429, 500, 502, 503, 504, 524, 529, 999)
    },
    "redirect": b"HTTP/1.1 302 Found\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",
    "error": http_response(b'{"error":{"message":"overloaded","type":"overloaded_error"}}'),
    "error event": SSE_HEAD + chunked(b'data: {"error":{"message":"x"}}\n\n', DONE) + b"0\r\n\r\n",
    "named error": SSE_HEAD + chunked(b'event: error\ndata: {"message":"x"}\n\n') + b"0\r\n\r\n",
    "page": http_response(b"<!doctype html><h1>Sign in</h1>", kind=b"text/html"),
    "empty": http_response(b""),
    "comments only": SSE_HEAD + chunked(b": wait\n\n") + b"0\r\n\r\n",
    "done only": SSE_HEAD + chunked(DONE) + b"0\r\n\r\n",
    "no choices": http_response(b'{"id":"1","choices":[]}'),
    "cut": http_response(COMPLETION[:-30]),
    "text": http_response(b"upstream connect error", kind=b"text/plain"),
    "brotli": http_response(b"\x0b\x02\x80").replace(
        b"content-length", b"content-encoding: br\r\ncontent-length"
    ),
}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unusable_answer_is_tried_elsewhere(pair: Pair, stream: bool) -> None:
    """For each kind of it, in each dialect, the client gets the answer of the other instance."""
    got = {}
    for name, bad in BAD.items():
        pair.first.script = lambda call, bad=bad: call.send(bad)
        for path in ROUTES:
            pair.rig.report("n1")  # forget what the breakers know
            pair.rig.context.retries.earn_by_time(1.0)
            pair.rig.report(
                "n1",
                ready("m-0", "m", pair.first.url),
                ready("m-1", "m", pair.second.url),
            )
            asked = len(pair.first.calls)
            while len(pair.first.calls) == asked:  # until it has its turn
                response = await pair.send(path, stream=stream)
            text = (
                text_of(path, response.content, stream=stream)
                if response.status_code == 200
                else response.text
            )
            got[name, path] = (text, response.headers.get("x-cortex-route"))
    expected = "onetwothree" if stream else "one two"
    assert {k: v for k, v in got.items() if v != (expected, "retry")} == {}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error":{"message":"bad"}}'),
        (413, b'{"error":{"message":"too large"}}'),
        (422, b'{"error":{"message":"bad"}}'),
        (403, b'{"error":{"message":"your input was flagged"}}'),
        (500, b'{"error":{"message":"image input is not supported"}}'),
    ],
)
async def test_a_mistake_of_the_client_is_not_tried_elsewhere(
    pair: Pair, status: int, body: bytes
) -> None:
    """It would be one anywhere, and says nothing against the instance."""
    pair.first.script = lambda call: call.send(http_response(body, b"%d Nope" % status))
    response = await pair.send()
    assert 400 <= response.status_code < 500
    assert (len(pair.first.calls), len(pair.second.calls)) == (1, 0)
    await pair.rig.wait_idle()
    assert all(view.failing is None for view in pair.rig.fleet.snapshot.instances())


async def test_the_last_error_is_reported_if_all_fail(pair: Pair) -> None:
    """In the client's dialect, with the engine's status and advice on retries."""
    busy = http_response(b'{"error":{"message":"full"}}', b"429 Too Many Requests")
    busy = busy.replace(b"\r\n\r\n", b"\r\nretry-after: 7\r\n\r\n", 1)
    pair.first.script = pair.second.script = lambda call: call.send(busy)
    response = await pair.send(MESSAGES)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert response.json()["error"] == {"type": "rate_limit_error", "message": "full"}
    assert (len(pair.first.calls), len(pair.second.calls)) == (1, 1)


async def test_retry_after_pauses_an_instance(pair: Pair) -> None:
    """It is not asked again before, and without another one the client learns how long to wait."""
    busy = http_response(b"{}", b"503 Unavailable").replace(
        b"\r\n\r\n", b"\r\nretry-after: 60\r\n\r\n", 1
    )
    pair.first.script = lambda call: call.send(busy)
    for _ in range(6):
        assert (await pair.send()).status_code == 200
    assert len(pair.first.calls) == 1
    pair.second.script = pair.first.script
    assert (await pair.send()).status_code == 503
    refused = await pair.send()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
    assert 55 < int(refused.headers["retry-after"]) <= 60
    assert len(pair.second.calls) == 7


async def test_a_rejected_key_opens_the_breaker(pair: Pair) -> None:
    """After three requests the instance is left alone; meanwhile the other one answers."""
    pair.first.script = lambda call: call.send(http_response(b"{}", b"401 Unauthorized"))
    for _ in range(12):
        assert (await pair.send()).status_code == 200
    assert len(pair.first.calls) == 3
    failing = [view.failing for view in pair.rig.fleet.snapshot.instances()]
    assert failing == ["the server behind this model rejected the gateway's key", None]


async def test_idle_traffic_is_spread(pair: Pair) -> None:
    """Equally good instances take turns."""
    for _ in range(8):
        await pair.send()
    assert (len(pair.first.calls), len(pair.second.calls)) == (4, 4)


STREAM_WITHOUT_USAGE = STREAM.replace(USAGE, b"")

CONVERTED = {
    "a whole answer": http_response(COMPLETION),
    "a whole answer labelled as a stream": http_response(COMPLETION, kind=b"text/event-stream"),
    "a whole answer after blank lines": http_response(b"\n \n\n" + COMPLETION),
    "a whole answer after comments": http_response(b": wait\n\n: wait\n\n" + COMPLETION),
    "a stream labelled as JSON": http_response(
        STREAM.replace(b"one", b"one two", 1).replace(CHUNK % b"two" + CHUNK % b"three", b"")
    ),
    "a stream after comments": SSE_HEAD
    + chunked(b": wait\n\n", b": wait\n\n", CHUNK % b"one two", LAST, USAGE, DONE)
    + b"0\r\n\r\n",
    "a compressed answer": http_response(gzip.compress(COMPLETION)).replace(
        b"content-length", b"content-encoding: gzip\r\ncontent-length"
    ),
    "a compressed stream": http_response(
        gzip.compress(CHUNK % b"one two" + LAST + USAGE + DONE), kind=b"text/event-stream"
    ).replace(b"content-length", b"content-encoding: gzip\r\ncontent-length"),
    "a body that ends with its connection": b"HTTP/1.0 200 OK\r\n\r\n" + COMPLETION,
}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_another_form_is_converted(pair: Pair, stream: bool) -> None:
    """Whatever the engine makes of `stream`, the client gets what it asked for, with usage."""
    got = {}
    for name, sent in CONVERTED.items():

        async def script(call: Call, sent: bytes = sent) -> None:
            await call.send(sent)
            if sent.startswith(b"HTTP/1.0"):
                call.writer.close()

        pair.first.script = pair.second.script = script
        for path in ROUTES:
            response = await pair.send(path, stream=stream)
            assert response.status_code == 200, (name, path, response.text)
            kind = response.headers["content-type"].partition(";")[0]
            got[name, path] = (text_of(path, response.content, stream=stream), kind)
            await pair.rig.wait_idle()
            line = pair.rig.context.access_log.last(1)[0]
            assert (line.outcome, line.prompt_tokens, line.completion_tokens) == ("ok", 7, 3)
    kind = "text/event-stream" if stream else "application/json"
    assert {k: v for k, v in got.items() if v != ("one two", kind)} == {}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ROUTES)
async def test_an_engine_that_never_ends_its_stream_is_left(
    pair: Pair, path: str, stream: bool
) -> None:
    """After finish and usage, or [DONE], the answer ends soon, even if comments continue."""

    async def linger(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(CHUNK % b"one two", LAST, USAGE))
        with contextlib.suppress(ConnectionError):
            while True:
                await call.send(chunked(b": still here\n\n"))
                await asyncio.sleep(0.3)

    pair.first.script = linger
    async with asyncio.timeout(20):
        response = await pair.send(path, stream=stream)
    assert text_of(path, response.content, stream=stream) == "one two"
    async with asyncio.timeout(10):
        await pair.first.wait_idle()
    assert pair.rig.context.access_log.last(1)[0].outcome == "ok"
    assert len(pair.second.calls) == 0


@pytest.mark.parametrize("path", ROUTES)
async def test_an_exception_in_the_gateway_ends_the_request(pair: Pair, path: str) -> None:
    """Nothing that an engine sends leaves its client waiting."""
    pair.first.script = lambda call: call.send(
        http_response(b'{"choices":[{"message":{"content":"\\ud800"}}],"usage":[' + b"[" * 9000)
    )
    assert (await pair.send(path)).status_code in {200, 502}
    assert (await pair.send(path)).status_code == 200


class TestCounting:
    """What requests use is counted, whether or not the engine says so."""

    async def used(self, pair: Pair) -> tuple[int, int, bool]:
        """Return what the last request used, and whether that is an estimate."""
        await pair.rig.wait_idle()
        line = pair.rig.context.access_log.last(1)[0]
        return line.prompt_tokens, line.completion_tokens, line.tokens_estimated

    @pytest.mark.parametrize("path", ROUTES)
    async def test_a_client_that_leaves(self, pair: Pair, path: str) -> None:
        """The prompt and the tokens so far."""

        async def endless(call: Call) -> None:
            await call.send(SSE_HEAD, chunked(CHUNK % b"a", CHUNK % b"b", CHUNK % b"c"))
            await call.wait_closed()

        pair.first.script = endless
        body = BODIES[path] | {"stream": True}
        async with pair.http.stream("POST", path, json=body) as response:
            async for piece in response.aiter_raw():
                if b'"c"' in piece:
                    break
        assert await self.used(pair) == (5, 3, True)

    async def test_a_client_that_leaves_during_the_prompt(self, pair: Pair) -> None:
        """The engine has had the prompt all the same."""
        pair.first.script = Call.wait_closed
        sent = asyncio.create_task(pair.send(stream=True))
        await pair.first.call(0)
        sent.cancel()
        assert await self.used(pair) == (5, 0, True)

    @pytest.mark.parametrize("path", ROUTES)
    async def test_an_engine_that_dies(self, pair: Pair, path: str) -> None:
        """In mid-stream."""

        async def die(call: Call) -> None:
            await call.send(SSE_HEAD, chunked(CHUNK % b"a", CHUNK % b"b"))
            call.writer.transport.abort()

        pair.first.script = die
        with contextlib.suppress(httpx.RemoteProtocolError):
            await pair.send(path, stream=True)
        assert await self.used(pair) == (5, 2, True)

    async def test_no_usage(self, pair: Pair) -> None:
        """Of a stream the events count, of a whole answer its length."""

        async def silent(call: Call) -> None:
            if json.loads(call.body).get("stream"):
                await call.send(SSE_HEAD + chunked(CHUNK % b"a", LAST, DONE) + b"0\r\n\r\n")
            else:
                whole = json.loads(COMPLETION)
                del whole["usage"]
                await call.send(http_response(json.dumps(whole).encode()))

        pair.first.script = pair.second.script = silent
        await pair.send(stream=True)
        assert await self.used(pair) == (5, 2, True)
        await pair.send()
        assert await self.used(pair) == (5, 2, True)

    async def test_embeddings_without_usage(self, pair: Pair) -> None:
        """Their input counts."""
        pair.first.script = lambda call: call.send(http_response(b'{"data":[]}'))
        await pair.http.post("/v1/embeddings", json={"model": "m", "input": "x" * 78})
        assert await self.used(pair) == (20, 0, True)

    async def test_an_error_counts_nothing(self, pair: Pair) -> None:
        """The engine computed nothing."""
        pair.first.script = lambda call: call.send(http_response(b"{}", b"400 Bad Request"))
        await pair.send()
        assert await self.used(pair) == (0, 0, False)

    async def test_limits_by_tokens_hold_without_usage(self) -> None:
        """A client can't avoid its limit by leaving early."""

        async def endless(call: Call) -> None:
            await call.send(SSE_HEAD, chunked(CHUNK % b"a"))
            await call.wait_closed()

        keyring = Keyring()
        limited = KeyEntry(name="k", hash=hash_of("k"), limits=KeyLimits(tokens_per_minute=4))
        keyring.replace([limited], (), time.monotonic())
        async with (
            scripted_engine(endless) as engine,
            running_proxy({"m": engine.url}, access_control=AccessControl(keyring)) as rig,
            httpx.AsyncClient(base_url=rig.url, headers={"authorization": "Bearer k"}) as http,
        ):
            body = BODIES[CHAT] | {"stream": True}
            async with http.stream("POST", CHAT, json=body) as response:
                await anext(response.aiter_raw())
            await rig.wait_idle()
            assert (await http.post(CHAT, json=body)).status_code == 429


async def test_the_only_instance_restarts_before_the_first_byte() -> None:
    """The request waits for the restart, as for a cold start, and is answered by the new process."""

    async def die(call: Call) -> None:
        call.writer.transport.abort()

    model_config = ModelConfig(id="m", harness="scripted")
    async with (
        scripted_engine(die) as old,
        scripted_engine() as new,
        running_proxy({"m": old.url}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        sent = asyncio.create_task(http.post(CHAT, json=BODIES[CHAT] | {"stream": True}))
        await old.call(0)
        lost = ready("m-0", "m", old.url).model_copy(
            update={"status": InstanceState.LOADING, "url": None}
        )
        rig.report("n1", lost)
        assert rig.loads is not None
        await rig.loads.requested.wait()
        rig.loads.outcome.set_result(("m-0", new.url))
        response = await sent
        assert text_of(CHAT, response.content, stream=True) == "onetwothree"
        assert (len(old.calls), len(new.calls)) == (1, 1)


async def test_an_error_of_the_relay_is_a_lost_instance() -> None:
    """A neuron's relay that finds no engine is distinguished from an engine that fails by itself."""
    relay = http_response(
        b'{"error":{"message":"the engine broke off","src":"cortex"}}', b"502 Bad Gateway"
    ).replace(b"content-type", b"%b: 1\r\ncontent-type" % RELAY_ERROR_HEADER, 1)
    own = http_response(b'{"error":{"message":"CUDA error"}}', b"502 Bad Gateway")
    model_config = ModelConfig(id="m", harness="scripted")
    async with (
        scripted_engine(lambda call: call.send(own)) as engine,
        scripted_engine() as new,
        running_proxy({"m": engine.url}, model_configs=[model_config]) as rig,
        httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
    ):
        body = BODIES[CHAT] | {"stream": True}
        assert (await http.post(CHAT, json=body)).status_code == 502
        engine.script = lambda call: call.send(relay)
        sent = asyncio.create_task(http.post(CHAT, json=body))
        await engine.call(1)
        rig.report("n1")
        assert rig.loads is not None
        await rig.loads.requested.wait()
        rig.loads.outcome.set_result(("m-0", new.url))
        assert text_of(CHAT, (await sent).content, stream=True) == "onetwothree"


class TestLostNode:
    """Requests on a node that can't be reached any more."""

    @contextlib.asynccontextmanager
    async def two_nodes(
        self, script: Script, *model_configs: ModelConfig
    ) -> AsyncIterator[tuple[ProxyRig, httpx.AsyncClient, ScriptedEngine, ScriptedEngine]]:
        """Run an instance on each of two nodes; only the first one is ready at first."""
        async with (
            scripted_engine(script) as first,
            scripted_engine() as second,
            running_proxy({"m": first.url}, model_configs=model_configs) as rig,
            httpx.AsyncClient(base_url=rig.url, timeout=30) as http,
        ):
            yield rig, http, first, second

    async def test_requests_without_an_answer_go_elsewhere(self) -> None:
        """At once, all of them, although the old connections stay open; the instance is not blamed."""
        async with self.two_nodes(Call.wait_closed) as (rig, http, first, second):
            body = BODIES[CHAT] | {"stream": True}
            sent = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(40)]
            await first.call(39)
            rig.report("n2", ready("m-1", "m", second.url))
            rig.fleet.mark_unreachable("n1", "silent")
            for response in await asyncio.gather(*sent):
                assert response.content == STREAM_WITHOUT_USAGE
                assert response.headers["x-cortex-node"] == "n2"
            rig.report("n1", ready("m-0", "m", first.url))
            assert all(view.failing is None for view in rig.fleet.snapshot.instances())

    async def test_streams_of_a_dead_host_end_with_an_error(self) -> None:
        """A host that accepts no connection is dead for the connections that are open, too."""

        async def stall(call: Call) -> None:
            await call.send(SSE_HEAD, chunked(CHUNK % b"a"))
            await call.wait_closed()

        async with self.two_nodes(stall) as (rig, http, first, _):
            rig.report("n1", ready("m-0", "m", first.url))
            async with http.stream("POST", CHAT, json=BODIES[CHAT] | {"stream": True}) as response:
                pieces = response.aiter_raw()
                assert await anext(pieces) == CHUNK % b"a"
                first.stop_listening()
                rig.fleet.mark_unreachable("n1", "silent")
                async with asyncio.timeout(20):
                    with contextlib.suppress(httpx.RemoteProtocolError):
                        async for piece in pieces:
                            assert b"its host is gone" in piece
            await rig.wait_idle()
            assert rig.context.access_log.last(1)[0].outcome == "upstream_failed"
            assert rig.context.pool.live == 0

    async def test_streams_go_on_while_only_the_neuron_is_away(self) -> None:
        """An engine that still accepts connections is not dead."""
        go = asyncio.Event()

        async def wait(call: Call) -> None:
            await call.send(SSE_HEAD, chunked(CHUNK % b"a"))
            await go.wait()
            await call.send(chunked(LAST, DONE) + b"0\r\n\r\n")

        async with self.two_nodes(wait) as (rig, http, first, _):
            sent = asyncio.create_task(http.post(CHAT, json=BODIES[CHAT] | {"stream": True}))
            await first.call(0)
            rig.fleet.mark_unreachable("n1", "restarting")
            async with asyncio.timeout(20):
                await first.wait_accepted(2)  # a probe has been accepted
            go.set()
            assert (await sent).content == CHUNK % b"a" + LAST + DONE
