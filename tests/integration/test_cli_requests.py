from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from demo_fleet import cortex
from rigs.engine import (
    CHUNK,
    DONE,
    LAST,
    SSE_HEAD,
    USAGE,
    Call,
    ScriptedEngine,
    chunked,
    scripted_engine,
)
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.client.control import EventCursor
from cortex_common.client.gateway import OperatorClient
from cortex_common.config.access import KeyEntry
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, NotFound
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.keys import Scope
from cortex_common.schema.operations import PinModelRequest, UnpinModelRequest
from cortex_common.schema.requests import CancelRequest, RequestList, RequestState
from cortex_server.auth.keys import hash_of

ADA, BEN = "the operator's secret", "the user's secret"
KEYS = (
    KeyEntry(name="ada", hash=hash_of(ADA), scopes=frozenset({Scope.OPERATOR})),
    KeyEntry(name="ben", hash=hash_of(BEN), scopes=frozenset({Scope.INFER})),
)


@dataclass
class PausedGateway:
    """A gateway whose engine sends one token and then waits for `go`."""

    served: InProcessGateway
    engine: ScriptedEngine
    go: asyncio.Event

    def operator(self) -> OperatorClient:
        """Return a client with the operator's key."""
        return OperatorClient(self.served.url, who="the gateway", token=ADA)

    @contextlib.asynccontextmanager
    async def request_in_flight(
        self, ident: str, *, stream: bool = True
    ) -> AsyncIterator[asyncio.Task[str]]:
        """Send a request with Ben's key; the result of the task is the response body."""

        async def send() -> str:
            body = {
                "model": "m",
                "stream": stream,
                "messages": [{"role": "user", "content": "SECRET"}],
            }
            headers = {"authorization": f"Bearer {BEN}", "x-request-id": ident}
            url = f"{self.served.url}/v1/chat/completions"
            async with (
                httpx.AsyncClient(timeout=20) as http,
                http.stream("POST", url, headers=headers, json=body) as answer,
            ):
                # The body of a failed stream is cut.
                content = b""
                with contextlib.suppress(httpx.RemoteProtocolError):
                    async for piece in answer.aiter_bytes():
                        content += piece
                return content.decode()

        number = len(self.engine.calls)
        task = asyncio.create_task(send())
        try:
            async with asyncio.timeout(10):
                await self.engine.call(number)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_for_state(self, state: RequestState) -> RequestList:
        """Wait until a request is in this state and return the requests."""
        async with self.operator() as client, asyncio.timeout(10):
            while True:
                requests = await client.requests()
                if any(r.state is state for r in (*requests.active, *requests.recent)):
                    return requests


@pytest.fixture
async def paused() -> AsyncIterator[PausedGateway]:
    """Run the gateway."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunked(CHUNK % b"one"))
        closed = asyncio.create_task(call.wait_closed())
        released = asyncio.create_task(go.wait())
        await asyncio.wait({closed, released}, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        released.cancel()
        await asyncio.gather(closed, released, return_exceptions=True)
        if go.is_set():
            await call.send(chunked(LAST, USAGE, DONE) + b"0\r\n\r\n")

    async with (
        scripted_engine(script) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(
            ModelConfig(id="m", harness="scripted"), keys=KEYS, neurons={"n1": neuron.url}
        ) as served,
    ):
        async with asyncio.timeout(10):
            while not served.gateway.fleet.ready("m"):
                await asyncio.sleep(0.01)
        yield PausedGateway(served, engine, go)


async def test_a_request_is_listed_on_its_way_and_after(paused: PausedGateway):
    """A request is listed with key, model, node and tokens, and once finished with outcome and times."""
    async with paused.request_in_flight("req-one") as task:
        (now,) = (await paused.wait_for_state(RequestState.DECODE)).active
        assert (now.id, now.key, now.model, now.node) == ("req-one", "ben", "m", "n1")
        assert now.tokens_out == 1
        assert now.outcome is None
        paused.go.set()
        await task
        found = await paused.wait_for_state(RequestState.DONE)

    assert found.active == ()
    (done,) = found.recent
    assert (done.id, done.key, done.outcome) == ("req-one", "ben", "ok")
    assert done.ttft_ms is not None
    assert 0 < done.ttft_ms <= done.total_ms
    assert abs(done.started - now.started) < 0.05


async def test_the_limit_applies_to_finished_requests(paused: PausedGateway):
    """`limit` is the maximum number of finished requests, newest first."""
    paused.go.set()
    for ident in ("req-one", "req-two", "req-three"):
        async with paused.request_in_flight(ident) as task:
            await task
    async with paused.operator() as client:
        found = [await client.requests(last) for last in (0, 2, None)]

    assert [[r.id for r in f.recent] for f in found] == [
        [],
        ["req-three", "req-two"],
        ["req-three", "req-two", "req-one"],
    ]


async def test_no_text_is_listed(paused: PausedGateway):
    """The list never contains the prompt or the response."""
    async with paused.request_in_flight("req-one") as task:
        active = await paused.wait_for_state(RequestState.DECODE)
        paused.go.set()
        await task
        ended = await paused.wait_for_state(RequestState.DONE)

    text = active.model_dump_json() + ended.model_dump_json()
    assert "SECRET" not in text
    assert '"one"' not in text


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_ends_engine_and_client(paused: PausedGateway, stream: bool):
    """The engine of a cancelled request is disconnected, and its client receives an error."""
    async with (
        paused.request_in_flight("req-one", stream=stream) as task,
        paused.operator() as client,
    ):
        await paused.wait_for_state(RequestState.DECODE)
        done = await client.cancel(CancelRequest(request="req-o"))
        body = await task
        async with asyncio.timeout(10):
            await paused.engine.wait_idle()

    assert done.outcome == "cancelled"
    assert '"code":"cancelled"' in body.replace(" ", "")
    assert "[DONE]" not in body


async def test_cancelling_needs_a_clear_name(paused: PausedGateway):
    """An ambiguous prefix and an unknown id are errors that affect no request."""
    async with (
        paused.request_in_flight("req-one"),
        paused.request_in_flight("req-two"),
        paused.operator() as client,
    ):
        with pytest.raises(Conflict):
            await client.cancel(CancelRequest(request="req-"))
        with pytest.raises(NotFound):
            await client.cancel(CancelRequest(request="other"))
        assert len((await client.requests()).active) == 2


async def test_the_command_lists_and_cancels(paused: PausedGateway):
    """`cortex requests ls` and `cancel` work in a shell."""

    async def run(*args: str) -> str:
        done = await asyncio.to_thread(
            cortex, *args, CORTEX_GATEWAY_URL=paused.served.url, CORTEX_API_KEY=ADA
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async with paused.request_in_flight("req-one"):
        await paused.wait_for_state(RequestState.DECODE)
        assert json.loads(await run("requests", "ls", "--json"))["items"][0]["state"] == "decode"
        assert await run("requests", "ls", "--slow", "1h") == ""
        assert (
            await run("requests", "cancel", "req-one")
            == "cancelled req-one of ben after 1 tokens\n"
        )
        assert "cancelled" in await run("requests", "ls", "--model", "m", "--no-headers")


async def test_instances_count_what_they_did(paused: PausedGateway):
    """The snapshot counts an instance's finished requests and tokens."""
    paused.go.set()
    async with paused.request_in_flight("req-one") as task:
        await task
    await paused.served.wait_idle()
    (instance,) = paused.served.gateway.fleet.snapshot.instances()

    assert (instance.requests, instance.errors) == (1, 0)
    assert (instance.tokens_in, instance.tokens_out) == (7, 3)


async def test_the_audit_log_contains_the_actor(paused: PausedGateway):
    """Audit entries contain the operator's key, and a resumed stream yields the missed ones."""
    async with paused.operator() as client:
        cursor = EventCursor()
        async with contextlib.aclosing(client.watch(cursor)) as updates:
            await anext(updates)
        await client.pin(PinModelRequest(model="m"))
        await client.unpin(UnpinModelRequest(model="m"))
        (pinned,) = [e for e in await client.audit() if e.event == "pinned"]
        missed: list[str] = []
        async with asyncio.timeout(10), contextlib.aclosing(client.watch(cursor)) as updates:
            while missed[-1:] != ["unpinned"]:
                update = await anext(updates)
                # This neuron has no routes for pins, which is an entry of its own.
                if isinstance(update, AuditEntry) and update.event != "directives_unsent":
                    missed.append(update.event)

    assert (pinned.actor, pinned.fields["model"]) == ("ada", "m")
    assert missed == ["pinned", "unpinned"]
