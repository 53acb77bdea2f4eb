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
class Held:
    """A gateway whose engine says one word and then waits for `go`."""

    served: InProcessGateway
    engine: ScriptedEngine
    go: asyncio.Event

    def operator(self) -> OperatorClient:
        """A client with the operator's key."""
        return OperatorClient(self.served.url, who="the gateway", token=ADA)

    @contextlib.asynccontextmanager
    async def asking(self, ident: str, *, stream: bool = True) -> AsyncIterator[asyncio.Task[str]]:
        """A request under way by Ben's key; the task's result is the body that he gets."""

        async def ask() -> str:
            async with httpx.AsyncClient(timeout=20) as http:
                answer = await http.post(
                    f"{self.served.url}/v1/chat/completions",
                    headers={"authorization": f"Bearer {BEN}", "x-request-id": ident},
                    json={
                        "model": "m",
                        "stream": stream,
                        "messages": [{"role": "user", "content": "SECRET"}],
                    },
                )
                return answer.text

        number = len(self.engine.calls)
        task = asyncio.create_task(ask())
        try:
            async with asyncio.timeout(10):
                await self.engine.call(number)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def listed(self, state: RequestState) -> RequestList:
        """The listing once a request is in that state."""
        async with self.operator() as client, asyncio.timeout(10):
            while True:
                found = await client.requests()
                if any(r.state is state for r in (*found.active, *found.recent)):
                    return found


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    """See `Held`."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunked(CHUNK % b"one"))
        gone = asyncio.create_task(call.wait_closed())
        went = asyncio.create_task(go.wait())
        await asyncio.wait({gone, went}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        went.cancel()
        await asyncio.gather(gone, went, return_exceptions=True)
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
        yield Held(served, engine, go)


async def test_a_request_is_listed_on_its_way_and_after(held: Held):
    """A request is listed with key, model, node and tokens so far, and when it has ended with its outcome and times."""
    async with held.asking("req-one") as task:
        (now,) = (await held.listed(RequestState.DECODE)).active
        assert (now.id, now.key, now.model, now.node) == ("req-one", "ben", "m", "n1")
        assert now.tokens_out == 1
        assert now.outcome is None
        held.go.set()
        await task
        found = await held.listed(RequestState.DONE)

    assert found.active == ()
    (done,) = found.recent
    assert (done.id, done.key, done.outcome) == ("req-one", "ben", "ok")
    assert done.ttft_ms is not None
    assert 0 < done.ttft_ms <= done.total_ms
    assert abs(done.started - now.started) < 0.05


async def test_as_many_are_listed_as_are_asked_for(held: Held):
    """`last` bounds those that ended, the newest first."""
    held.go.set()
    for ident in ("req-one", "req-two", "req-three"):
        async with held.asking(ident) as task:
            await task
    async with held.operator() as client:
        found = [await client.requests(last) for last in (0, 2, None)]

    assert [[r.id for r in f.recent] for f in found] == [
        [],
        ["req-three", "req-two"],
        ["req-three", "req-two", "req-one"],
    ]


async def test_no_text_is_listed(held: Held):
    """Neither prompt nor answer is in the listing, whatever the state of the request."""
    async with held.asking("req-one") as task:
        active = await held.listed(RequestState.DECODE)
        held.go.set()
        await task
        ended = await held.listed(RequestState.DONE)

    told = active.model_dump_json() + ended.model_dump_json()
    assert "SECRET" not in told
    assert '"one"' not in told


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_ends_engine_and_client(held: Held, stream: bool):
    """A cancelled request's engine loses its connection, and its client is told with the code `cancelled`."""
    async with held.asking("req-one", stream=stream) as task, held.operator() as client:
        await held.listed(RequestState.DECODE)
        done = await client.cancel(CancelRequest(request="req-o"))
        body = await task
        async with asyncio.timeout(10):
            await held.engine.wait_idle()

    assert done.outcome == "cancelled"
    assert '"code":"cancelled"' in body.replace(" ", "")
    assert "[DONE]" not in body


async def test_cancelling_needs_a_clear_name(held: Held):
    """The beginning of two ids is refused, an unknown id is not found, and both requests go on."""
    async with held.asking("req-one"), held.asking("req-two"), held.operator() as client:
        with pytest.raises(Conflict):
            await client.cancel(CancelRequest(request="req-"))
        with pytest.raises(NotFound):
            await client.cancel(CancelRequest(request="other"))
        assert len((await client.requests()).active) == 2


async def test_the_command_lists_and_cancels(held: Held):
    """`cortex requests ls` and `cancel` do the same from a shell."""

    async def run(*args: str) -> str:
        done = await asyncio.to_thread(
            cortex, *args, CORTEX_GATEWAY_URL=held.served.url, CORTEX_API_KEY=ADA
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async with held.asking("req-one"):
        await held.listed(RequestState.DECODE)
        assert json.loads(await run("requests", "ls", "--json"))["items"][0]["state"] == "decode"
        assert await run("requests", "ls", "--slow", "1h") == ""
        assert (
            await run("requests", "cancel", "req-one")
            == "cancelled req-one of ben after 1 tokens\n"
        )
        assert "cancelled" in await run("requests", "ls", "--model", "m", "--no-headers")


async def test_instances_count_what_they_did(held: Held):
    """An instance's requests and tokens are in the snapshot once they have ended."""
    held.go.set()
    async with held.asking("req-one") as task:
        await task
    await held.served.wait_idle()
    (instance,) = held.served.gateway.fleet.snapshot.instances()

    assert (instance.requests, instance.errors) == (1, 0)
    assert (instance.tokens_in, instance.tokens_out) == (7, 3)


async def test_the_trail_names_who_did_it(held: Held):
    """A pin stands in the trail with the operator's key; a stream that lost it gets it when it is resumed."""
    async with held.operator() as client:
        cursor = EventCursor()
        async with contextlib.aclosing(client.watch(cursor)) as updates:
            await anext(updates)
        await client.pin(PinModelRequest(model="m"))
        await client.unpin(UnpinModelRequest(model="m"))
        (pinned,) = [e for e in await client.trail() if e.event == "pinned"]
        async with asyncio.timeout(10), contextlib.aclosing(client.watch(cursor)) as updates:
            missed = [await anext(updates), await anext(updates)]

    assert (pinned.actor, pinned.facts["model"]) == ("ada", "m")
    assert [e.event for e in missed if isinstance(e, AuditEntry)] == ["pinned", "unpinned"]
