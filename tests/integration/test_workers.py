"""A gateway with two worker processes does what one process does: the same stories, seen through both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rigs.engine import CHUNK, DONE, LAST, SSE_HEAD, Call, ScriptedEngine, chunked, scripted_engine
from rigs.fleet import MODELS, running_fleet
from rigs.gateway import GatewayProcess, gateway_process, neuron_table
from rigs.neuron import scripted_neuron

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.access import KeyLimits
from cortex_common.errors import CortexError
from cortex_common.schema.keys import CreateKey
from cortex_common.schema.operations import EvictModel, UnloadModel
from cortex_server.auth.keys import hash_of

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
ANSWER = CHUNK % b"half" + LAST + DONE
WORKERS = "workers = 2\n"
MODEL = '[[models]]\nid = "m"\nharness = "scripted"\n'
SECONDS = 60.0


class Gated:
    """An engine's script: half of the answer at once, the rest while the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        await call.send(SSE_HEAD + chunked(CHUNK % b"half"))
        await self.open.wait()
        await call.send(chunked(LAST, DONE) + b"0\r\n\r\n")


@dataclass
class House:
    """A gateway with two workers, its engine, and an operator's client."""

    gateway: GatewayProcess
    engine: ScriptedEngine
    access_control: Gated
    operator: OperatorClient

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        assert self.gateway.process is not None
        return [p.pid for p in psutil.Process(self.gateway.process.pid).children()]

    async def ask(self, secret: str = "", **more: object) -> httpx.Response:
        """Ask over a connection of its own, so that the kernel chooses the worker anew."""
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        async with httpx.AsyncClient(
            base_url=self.gateway.url, timeout=SECONDS, verify=False
        ) as http:
            return await http.post(CHAT, json=BODY | more, headers=headers)

    async def in_flight(self, wanted: int | Callable[[], int]) -> None:
        """Wait until all that count requests agree on how many there are."""
        async with asyncio.timeout(SECONDS):
            while True:
                snapshot = await self.operator.fleet()
                seen = {sum(i.in_flight for i in snapshot.instances())}
                seen.add(len((await self.operator.requests()).active))
                seen.add(int((await self.metrics())["cortex_requests_admitted", ()]))
                if seen == {wanted if isinstance(wanted, int) else wanted()}:
                    return
                await asyncio.sleep(0.02)

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """What Prometheus would read."""
        async with httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{self.gateway.metrics_port}/metrics"
            text = (await http.get(url)).text
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }


@contextlib.asynccontextmanager
async def house(folder, *tables: str, **more: str) -> AsyncIterator[House]:
    """A running one; its model is ready."""
    access_control = Gated()
    more["gateway"] = WORKERS + more.get("gateway", "")
    async with (
        scripted_engine(access_control) as engine,
        contextlib.AsyncExitStack() as at_the_end,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(folder, neuron_table("n", neuron.url), *tables, **more) as gateway,
        gateway.operator() as operator,
    ):
        at_the_end.push_async_callback(engine.idle)
        await gateway.until(lambda s: bool(s.instances()), SECONDS)
        yield House(gateway, engine, access_control, operator)
        # In order, so that no connection of a worker outlives its test.
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended(SECONDS) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One house for the stories that leave it as it was, in a loop of the module's own."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        folder = tmp_path_factory.mktemp("workers")
        made = runner.run(stack.enter_async_context(house(folder, models=MODEL)))
        yield lambda story: runner.run(story(made))
        runner.run(stack.aclose())


def test_streams_through_both_workers_add_up(shared):
    """Requests over many connections reach both workers; counts, listings and metrics are the sums, and end at zero."""

    async def story(it: House) -> None:
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask()) for _ in range(24)]
        await it.engine.call(before + 23)
        await it.in_flight(24)
        connections = [
            len(
                [c for c in psutil.Process(pid).net_connections("tcp") if c.status == "ESTABLISHED"]
            )
            for pid in it.workers()
        ]
        assert len(connections) == 2
        assert min(connections) > 0
        it.access_control.open.set()
        answers = await asyncio.gather(*asked)
        assert {a.content for a in answers} == {ANSWER}
        assert {a.headers["x-cortex-instance"] for a in answers} == {"m-0"}
        assert len({a.headers["x-request-id"] for a in answers}) == 24
        await it.in_flight(0)
        metrics = await it.metrics()
        assert metrics["cortex_requests_total", (("model", "m"), ("node", "n"))] == 24
        recent = (await it.operator.requests()).recent
        assert {r.id for r in recent} == {a.headers["x-request-id"] for a in answers}

    shared(story)


def test_whatever_is_no_inference_route_works_on_the_same_port(shared):
    """Listings, health, documentation, errors, HEAD and the operator's event stream come through a worker."""

    async def story(it: House) -> None:
        async with httpx.AsyncClient(base_url=it.gateway.url, timeout=SECONDS) as http:
            assert (await http.get("/v1/models")).json()["data"][0]["id"] == "m"
            assert (await http.get("/v1/models/m?x=%20y")).json()["id"] == "m"
            assert (await http.get("/health")).json()["status"] == "ok"
            assert "/v1/models" in (await http.get("/openapi.json")).json()["paths"]
            head = await http.head("/")
            assert (head.status_code, head.content) == (200, b"")
            wrong = await http.get(CHAT)
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "invalid_request")
            assert len(wrong.headers.get_list("date")) == 1
            assert (await http.post("/operator/v1/nothing", json={})).status_code == 404
            async with http.stream("GET", "/operator/v1/events") as events:
                assert await anext(events.aiter_lines()) == "event: fleet"
            # Expect: 100-continue is not diverted, and is served by the worker all the same.
            waiting = await http.post(CHAT, json=BODY, headers={"expect": "100-continue"})
            assert waiting.content == ANSWER

    shared(story)


def test_whoever_asks_is_known_behind_the_relay(shared):
    """The operator API is for this host: neither a proxy's headers nor a forged one change who the client is."""

    async def story(it: House) -> None:
        async with httpx.AsyncClient(base_url=it.gateway.url, timeout=SECONDS) as http:
            assert (await http.get("/operator/v1/fleet")).status_code == 200
            passed_on = await http.get("/operator/v1/fleet", headers={"x-forwarded-for": "1.2.3.4"})
            assert passed_on.status_code == 401
            forged = {"x-cortex-client": "http 9.9.9.9 1"}
            assert (await http.get("/operator/v1/fleet", headers=forged)).status_code == 200

    shared(story)


def test_an_operator_ends_a_request_of_any_worker(shared):
    """Each of several requests is listed and can be cancelled, whichever worker has it."""

    async def story(it: House) -> None:
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask()) for _ in range(6)]
        await it.engine.call(before + 5)
        await it.in_flight(6)
        for view in (await it.operator.requests()).active:
            ended = await it.operator.cancel(view.id)
            assert (ended.id, ended.outcome) == (view.id, "cancelled")
        for answer in await asyncio.gather(*asked):
            assert b'"code":"cancelled"' in answer.content
        it.access_control.open.set()
        await it.in_flight(0)

    shared(story)


def test_a_drained_instance_gets_nothing_more_from_any_worker(shared):
    """While an operator's unload waits for streams of both workers no request is let through, and no stream is cut."""

    async def story(it: House) -> None:
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask()) for _ in range(8)]
        await it.engine.call(before + 7)
        with pytest.raises(CortexError) as busy:
            await it.operator.unload(UnloadModel(model="m", drain_timeout_s=0.3))
        assert busy.value.code == "still_busy"
        it.access_control.open.set()
        assert {a.content for a in await asyncio.gather(*asked)} == {ANSWER}
        assert (await it.ask()).content == ANSWER
        await it.in_flight(0)

    shared(story)


def test_an_instance_that_fails_is_left_alone_by_all_workers_and_tried_again(shared):
    """Failures that different workers saw count together; the operator sees why; a trial brings the instance back."""

    async def story(it: House) -> None:
        async def break_off(call: Call) -> None:
            call.writer.close()

        it.engine.script = break_off
        statuses = [(await it.ask()).status_code for _ in range(6)]
        assert statuses[:3] == [502] * 3
        assert statuses[-1] in {502, 503}
        assert 503 in statuses
        (instance,) = (await it.operator.fleet()).instances()
        assert "closed the connection" in (instance.failing or "")
        it.engine.script = it.access_control
        async with asyncio.timeout(SECONDS):
            while (await it.ask()).status_code != 200:
                await asyncio.sleep(0.05)
            while (await it.operator.fleet()).instances()[0].failing is not None:
                await asyncio.sleep(0.05)
        await it.in_flight(0)

    shared(story)


def test_keys_made_at_run_time_hold_at_once_and_their_limits_for_all_workers(shared):
    """A new key opens at once; over many connections no more come in than it may have; revoked, it opens nothing."""

    async def story(it: House) -> None:
        limits = KeyLimits(requests_per_minute=10, max_in_flight=4)
        operator = await it.operator.create_key(CreateKey(name="op", scopes=("infer", "operator")))
        boss = it.gateway.operator(operator.secret)
        made = await boss.create_key(CreateKey(name="few", limits=limits))
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask(made.secret)) for _ in range(12)]
        await it.engine.call(before + 3)
        async with asyncio.timeout(SECONDS):
            while sum(t.done() for t in asked) < 8:
                await asyncio.sleep(0.02)
        assert [k.in_flight for k in await boss.keys() if k.name == "few"] == [4]
        it.access_control.open.set()
        statuses = sorted(a.status_code for a in await asyncio.gather(*asked))
        assert statuses == [200] * 4 + [429] * 8
        # Ten a minute: six are left, a few more come back while this runs.
        more = [(await it.ask(made.secret)).status_code for _ in range(16)]
        assert 6 <= more.count(200) < 16
        assert more.count(429) > 0
        assert [k.in_flight for k in await boss.keys() if k.name == "few"] == [0]
        told = (await boss.requests()).recent
        limited = [r for r in told if r.outcome == "rate_limited"]
        assert limited
        assert {r.key for r in limited} == {"few"}
        await boss.revoke_key("few")
        assert (await it.ask(made.secret)).status_code == 401
        await boss.revoke_key("op")
        await boss.close()

    shared(story)


def test_a_killed_worker_takes_only_its_own_connections_along(shared):
    """After kill -9 under load the other worker's streams end whole, the dead one is forgotten and replaced."""

    async def story(it: House) -> None:
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask()) for _ in range(24)]
        await it.engine.call(before + 23)
        await it.in_flight(24)
        victim, survivor = it.workers()
        os.kill(victim, signal.SIGKILL)
        told = await it.gateway.logged("worker_died", seconds=SECONDS)
        assert (told["pid"], told["how"], told["replaced_in_s"]) == (victim, "SIGKILL", 0.0)
        await it.gateway.logged("worker_started", times=3, seconds=SECONDS)
        # Clients hear of it one by one.
        await it.in_flight(lambda: sum(not t.done() for t in asked))
        lost = [t for t in asked if t.done()]
        assert all(isinstance(t.exception(), httpx.TransportError) for t in lost)
        it.access_control.open.set()
        answers = await asyncio.gather(*(t for t in asked if t not in lost))
        assert {a.content for a in answers} == {ANSWER}
        assert 0 < len(answers) < 24
        died = ("code", "worker_died"), ("model", "m"), ("node", "n"), ("side", "cortex")
        assert (await it.metrics())["cortex_request_errors_total", died] == len(lost)
        await it.in_flight(0)
        assert survivor in it.workers()
        assert len(it.workers()) == 2
        assert {(await it.ask()).content for _ in range(8)} == {ANSWER}

    shared(story)


async def test_settings_queue_and_end_hold_for_both_workers(tmp_path):
    """New limits hold at once over both, one queue is kept for both, and SIGTERM waits for the streams of both."""
    key = f'[[keys]]\nname = "k"\nhash = "{hash_of("k")}"\n'
    async with house(tmp_path, models='[[models]]\nid = "other"\nharness = "scripted"\n') as it:
        config = (tmp_path / "cortex.toml").read_text()
        tables = (config[config.index("[[neurons]]") :], "[limits]\nmax_in_flight = 4\n", key)
        it.gateway.write(*tables, gateway=WORKERS, models=MODEL + 'aliases = ["nick"]\n')
        await it.operator.reload()
        assert (await it.ask()).status_code == 401
        it.access_control.open.clear()
        before = len(it.engine.calls)
        asked = [asyncio.create_task(it.ask("k", model="nick")) for _ in range(12)]
        await it.engine.call(before + 3)
        async with asyncio.timeout(SECONDS):
            while (await it.metrics())["cortex_requests_queued", ()] < 8:
                await asyncio.sleep(0.02)
        assert (await it.metrics())["cortex_requests_admitted", ()] == 4
        assert len(it.engine.calls) == before + 4
        it.gateway.signal(signal.SIGTERM)
        await it.gateway.logged("gateway_draining")
        refused = await it.ask("k")
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
        async with httpx.AsyncClient(base_url=it.gateway.url, timeout=SECONDS) as http:
            assert (await http.get("/ready")).status_code == 503
        it.access_control.open.set()
        assert {a.content for a in await asyncio.gather(*asked)} == {ANSWER}
        assert await it.gateway.ended() == 0


async def test_a_cold_start_through_a_worker_loads_evicts_and_says_so(tmp_path):
    """A request waits for a real load, as its headers tell; an eviction under load fails none of those that come."""
    async with (
        running_fleet(tmp_path, gateway=WORKERS) as rig,
        rig.operator() as operator,
        httpx.AsyncClient(base_url=rig.url, timeout=SECONDS) as http,
    ):
        body = {
            "model": MODELS[0],
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
        }
        first = await http.post(CHAT, json=body)
        assert first.status_code == 200, first.text
        assert first.headers["x-cortex-cold-start"] == "true"
        assert (await operator.decisions(first.headers["x-request-id"]))[0].waited_s > 0
        again = await http.post(CHAT, json=body)
        assert "x-cortex-cold-start" not in again.headers
        over = False

        async def go_on() -> set[int]:
            statuses = set()
            while not over:
                statuses.add((await http.post(CHAT, json=body)).status_code)
            return statuses

        busy = [asyncio.create_task(go_on()) for _ in range(4)]
        await operator.evict(EvictModel(model=MODELS[0]))
        third = await http.post(CHAT, json=body)
        over = True
        assert await asyncio.gather(*busy) == [{200}] * 4
        assert third.headers["x-cortex-instance"] != first.headers["x-cortex-instance"]


async def test_a_gateway_does_not_share_a_port_that_is_taken(tmp_path):
    """A second gateway with workers on one address is an error that names the setting, not half of the connections."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = GatewayProcess(tmp_path, port=taken.getsockname()[1])
        made.write(gateway=WORKERS)
        made.start()
        assert await made.ended(SECONDS) != 0
        assert "listen in cortex.toml" in made.log


async def test_a_gateway_with_workers_that_is_killed_leaves_nothing_behind(tmp_path):
    """No file of it lies about while it runs, so none does after it was killed, and its workers end with it."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    async with gateway_process(
        tmp_path, gateway=WORKERS, environ={"TMPDIR": str(temporary)}
    ) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=SECONDS) as http:
            assert (await http.get("/health")).status_code == 200
        assert gateway.process is not None
        workers = psutil.Process(gateway.process.pid).children()
        gateway.signal(signal.SIGKILL)
        await gateway.ended()
        _, left = await asyncio.to_thread(psutil.wait_procs, workers, SECONDS)

    assert left == []
    assert list(temporary.iterdir()) == []
