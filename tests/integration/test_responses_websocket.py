"""The WebSocket of the Responses API, with the client of the openai package, and message by message."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from clients_kit import (
    HELLO_STREAM,
    in_sequence,
    never_respond,
    openai_client,
    request_body,
    stream_response,
)
from dialects_kit import chunk, sse_stream
from published_schemas import open_responses, open_responses_events, violations
from rigs.engine import SSE_HEAD, Call, chunked, scripted_engine
from rigs.proxy import ProxyRig, running_proxy
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cortex_common.config.access import KeyEntry
from cortex_common.config.gateway import GatewaySection
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of

_LAST = {"response.completed", "response.failed", "response.incomplete"}


def _open(rig: ProxyRig, **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{rig.port}/v1/responses", **options)


async def _create(socket: ClientConnection, **fields: Any) -> None:
    await socket.send(json.dumps({"type": "response.create", "model": "m", "input": "a"} | fields))


async def _turn(socket: ClientConnection) -> list[dict[str, Any]]:
    """Receive the events of a response, or an error."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in _LAST | {"error"}:
        events.append(json.loads(await socket.recv()))
    return events


async def test_events_are_messages_and_match_the_schema() -> None:
    """Of two turns, of which the second continues the first, although it is not stored."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        _open(rig) as socket,
    ):
        await _create(socket, store=False)
        first = await _turn(socket)
        response = first[-1]["response"]
        await _create(socket, input="b", previous_response_id=response["id"], store=False)
        await _turn(socket)
        messages = request_body(engine.calls[1])["messages"]
        async with openai_client(rig.url) as sdk, _open(rig) as other:
            with pytest.raises(Exception, match="there is no response"):
                await sdk.responses.retrieve(response["id"])
            await _create(other, previous_response_id=response["id"])
            (error,) = await _turn(other)
    schemas = open_responses_events()
    assert [event["type"] for event in first][:2] == ["response.created", "response.in_progress"]
    assert [violations(schemas[event["type"]], event) for event in first] == [[]] * len(first)
    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "a"),
        ("assistant", "hello"),
        ("user", "b"),
    ]
    assert violations(open_responses("WebSocketErrorEvent"), error) == []
    assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")


@pytest.mark.compatibility("openai (Python)", "websocket")
async def test_official_sdk_uses_the_websocket() -> None:
    """responses.connect of the openai package."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        openai_client(rig.url) as sdk,
        sdk.responses.connect() as connection,
    ):
        await connection.response.create(model="m", input="a")
        types = []
        async for event in connection:
            types.append(event.type)
            if event.type == "response.completed":
                break
    assert "response.output_text.delta" in types


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "response.cancel"}, "type"),
        ({"type": "response.create", "model": "m", "input": "a", "stream": True}, "stream"),
        ({"type": "response.create", "model": "m", "input": "a", "top_k": 1}, "top_k"),
        ({"type": "response.create", "model": "nope", "input": "a"}, "model"),
        ([], None),
    ],
)
async def test_invalid_message_is_an_error_and_the_connection_stays(
    message: Any, param: str | None
) -> None:
    """The error has a status, and the next message is answered."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"m": engine.url}) as rig,
        _open(rig) as socket,
    ):
        await socket.send(json.dumps(message))
        (error,) = await _turn(socket)
        await _create(socket)
        assert (await _turn(socket))[-1]["type"] == "response.completed"
    assert violations(open_responses("WebSocketErrorEvent"), error) == []
    assert 400 <= error["status"] < 500
    assert error["error"]["param"] == param


async def test_engine_that_fails_ends_the_turn_with_an_error() -> None:
    """First the error event of streams, then `response.failed`; the connection stays."""

    async def die(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(sse_stream(chunk({"content": "a"}), done=False)))
        call.writer.transport.abort()

    async with (
        scripted_engine(in_sequence(die, stream_response(HELLO_STREAM))) as engine,
        running_proxy({"m": engine.url}) as rig,
        _open(rig) as socket,
    ):
        await _create(socket)
        assert (await _turn(socket))[-1]["type"] == "error"
        assert (await _turn(socket))[-1]["type"] == "response.failed"
        await _create(socket)
        assert (await _turn(socket))[-1]["type"] == "response.completed"


async def test_messages_are_answered_one_after_the_other() -> None:
    """A message that comes during a response waits for its end; too many are refused."""
    go = asyncio.Event()

    async def wait(call: Call) -> None:
        await go.wait()
        await stream_response(HELLO_STREAM)(call)

    async with (
        scripted_engine(wait) as engine,
        running_proxy({"m": engine.url}) as rig,
        _open(rig) as socket,
    ):
        for number in range(18):
            await _create(socket, metadata={"number": str(number)})
        (error,) = await _turn(socket)
        await engine.call(0)
        assert len(engine.calls) == 1
        go.set()
        answered = [(await _turn(socket))[-1]["response"]["metadata"]["number"] for _ in range(17)]
    assert error["error"]["code"] == "busy"
    assert answered == [str(number) for number in range(17)]


async def test_closed_connection_cancels_the_engine() -> None:
    """And frees what waits behind it."""
    async with (
        scripted_engine(never_respond) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        async with _open(rig) as socket:
            await _create(socket)
            await _create(socket)
            await engine.call(0)
        async with asyncio.timeout(5):
            await engine.wait_idle()
        await rig.wait_idle()


async def test_waiting_connection_gets_pings() -> None:
    """While the engine computes the prompt, so that no proxy in between closes it."""
    go = asyncio.Event()

    async def prefill(call: Call) -> None:
        await go.wait()
        await stream_response(HELLO_STREAM)(call)

    settings = GatewaySection(prefill_comment_after_s=0.01)
    async with (
        scripted_engine(prefill) as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
        _open(rig) as socket,
    ):
        await _create(socket)
        events = [json.loads(await socket.recv()) for _ in range(2)]
        go.set()
        events += await _turn(socket)
    assert events[0]["type"] == "response.created"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "hello"


async def test_client_without_a_key_gets_no_websocket() -> None:
    """The handshake is answered with 401, and 403 for a web page of another origin."""
    keyring = Keyring()
    keyring.replace([KeyEntry(name="a", hash=hash_of("a"), scopes=("infer",))], (), 0.0)
    async with (
        running_proxy({}, access_control=AccessControl(keyring)) as rig,
        running_proxy({}) as open_rig,
    ):
        with pytest.raises(InvalidStatus) as unauthorized:
            await _open(rig)
        with pytest.raises(InvalidStatus):
            await _open(rig, additional_headers={"authorization": "Bearer b"})
        headers = {"authorization": "Bearer a"}
        async with _open(rig, additional_headers=headers):
            pass
        with pytest.raises(InvalidStatus) as forbidden:
            await _open(open_rig, origin="http://evil.example")
        async with _open(open_rig, origin=f"http://127.0.0.1:{open_rig.port}"):
            pass
    assert unauthorized.value.response.status_code == 401
    assert forbidden.value.response.status_code in {401, 403}
    assert json.loads(unauthorized.value.response.body)["error"]["code"] == "authentication_failed"


async def test_message_that_is_too_large_closes_the_connection() -> None:
    """As does a binary one."""
    async with running_proxy({}, settings=GatewaySection(max_body_mb=1)) as rig:
        for message, code in (("x" * (1 << 20) + "x", 1009), (b"{}", 1003)):
            async with _open(rig) as socket:
                await socket.send(message)
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd.code == code


async def test_stopping_gateway_closes_idle_connections() -> None:
    """With the code for servers that go away."""
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(running_proxy({}))
        socket = await stack.enter_async_context(_open(rig))
        closing = asyncio.create_task(socket.recv())
        rig.server.should_exit = True
        with pytest.raises(ConnectionClosed) as closed:
            await closing
    assert closed.value.rcvd.code == 1001


async def test_stopping_gateway_finishes_a_response() -> None:
    """And closes the connection after it, with what is queued behind it."""
    go = asyncio.Event()

    async def wait(call: Call) -> None:
        await go.wait()
        await stream_response(HELLO_STREAM)(call)

    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(scripted_engine(wait))
        rig = await stack.enter_async_context(running_proxy({"m": engine.url}))
        socket = await stack.enter_async_context(_open(rig))
        await _create(socket)
        await _create(socket)
        await engine.call(0)
        rig.server.should_exit = True
        while any(server.is_serving() for server in rig.server.servers):
            await asyncio.sleep(0.01)
        go.set()
        assert (await _turn(socket))[-1]["type"] == "response.completed"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 1001


async def test_other_paths_have_no_websocket() -> None:
    """An offer to upgrade elsewhere is declined."""
    async with running_proxy({}) as rig:
        with pytest.raises(InvalidStatus) as declined:
            await connect(f"ws://127.0.0.1:{rig.port}/v1/models")
    assert declined.value.response.status_code == 200
