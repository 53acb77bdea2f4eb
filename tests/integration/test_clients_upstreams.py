"""Servers that somebody else runs, in a fleet beside nodes: the whole gateway over scripted providers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from clients_kit import HI, SAY, asked, claude, gpt, say
from rigs.engine import SSE_HEAD, Call, ScriptedEngine, chunked, http_response, scripted_engine
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.lazy_import import openai, trustme
from rigs.neuron import scripted_neuron

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewayConfig, UpstreamEntry
from cortex_common.errors import Conflict, ModelNotFound
from cortex_common.schema.fleet import FleetSnapshot, NodeState
from cortex_common.schema.operations import (
    DrainNodeRequest,
    LoadModelRequest,
    PinModelRequest,
    UnloadModelRequest,
)
from cortex_server.fleet.neuron_watcher import RECONNECT_BACKOFF
from cortex_server.fleet.upstream_watcher import listing_delay_s
from cortex_server.placement.desired_state import DesiredState


@dataclass
class Provider:
    """An OpenAI-compatible server: what it lists, whom it lets in, and whether its answers fail.

    Attributes:
        models: that it lists; None for no such route.
        broken: it closes the connection of every request but listings.
        says: its answer to all of them, in place of a chat.
        asked: its requests but listings.
    """

    models: list[dict[str, object]] | None
    key: bytes | None = None
    broken: bool = False
    says: bytes | None = None
    asked: list[Call] = field(default_factory=list)
    url: str = ""

    async def script(self, call: Call) -> None:
        """Answer one request."""
        if self.key is not None and b"authorization: Bearer " + self.key + b"\r\n" not in call.head:
            await call.send(
                http_response(b'{"error":{"message":"who are you"}}', b"401 Unauthorized")
            )
        elif call.head.startswith(b"GET /v1/models "):
            body = json.dumps({"object": "list", "data": self.models}).encode()
            status = b"404 Not Found" if self.models is None else b"200 OK"
            await call.send(http_response(body, status))
        else:
            self.asked.append(call)
            if self.broken:
                call.writer.close()
            elif self.says is not None:
                await call.send(self.says)
            else:
                await call.send(SSE_HEAD + chunked(SAY) + b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[ScriptedEngine]:
    """The provider on a free port."""
    async with scripted_engine(provider.script) as engine:
        provider.url = engine.url
        yield engine


def entry(provider: Provider, name: str = "cloud", **more: object) -> UpstreamEntry:
    """Its entry in cortex.toml."""
    fields = {"name": name, "base_url": f"{provider.url}/v1", "refresh": 0.05} | more
    return UpstreamEntry.model_validate(fields)


async def until(served: InProcessGateway, true: Callable[[FleetSnapshot], bool]) -> FleetSnapshot:
    """Wait until the gateway sees the fleet so."""
    fleet, changed = served.gateway.fleet, asyncio.Event()
    fleet.on_change(changed.set)
    async with asyncio.timeout(10):
        while not true(snapshot := fleet.snapshot):
            changed.clear()
            await changed.wait()
    fleet.remove_listener(changed.set)
    return snapshot


def up(snapshot: FleetSnapshot) -> bool:
    """Whether all nodes are up."""
    return all(node.state is NodeState.UP for node in snapshot.nodes)


async def test_its_models_are_listed_and_served_in_every_dialect_with_its_own_key(
    tmp_path: Path,
) -> None:
    """Prefixed names go there by their own names, and the client's credential never does."""
    secret = tmp_path / "cloud.key"
    secret.write_text("sk-cloud\n")
    listed = [{"id": "big", "max_model_len": 4096}, {"id": "embed-1"}, {"id": "line\r\nbreak"}]
    provider = Provider(listed, key=b"sk-cloud")
    async with serving(provider):
        upstream = entry(provider, prefix="cloud/", models=("b*", "line*"), key_file=secret)
        async with running_gateway(upstreams=(upstream,)) as served:
            snapshot = await until(served, up)
            assert [(m.id, m.context) for m in snapshot.models] == [("cloud/big", 4096)]
            async with gpt(served.url, "sk-mine") as sdk:
                stream = await sdk.chat.completions.create(
                    model="cloud/big", messages=HI, stream=True
                )
                assert {piece.model async for piece in stream} == {"cloud/big"}
            async with (
                claude(served.url, "sk-mine") as sdk,
                sdk.messages.stream(model="cloud/big", max_tokens=5, messages=HI) as talk,
            ):
                assert (await talk.get_final_message()).content[0].text == "hello"
    assert [asked(call)["model"] for call in provider.asked] == ["big", "big"]
    assert all(b"sk-mine" not in call.head for call in provider.asked)


async def test_a_server_without_a_listing_offers_what_the_settings_name() -> None:
    """Names without a pattern are taken at their word."""
    provider = Provider(None)
    async with serving(provider):
        upstream = entry(provider, models=("only-this", "not-*"), context=2048)
        async with running_gateway(upstreams=(upstream,)) as served:
            snapshot = await until(served, up)
    assert [(m.id, m.context) for m in snapshot.models] == [("only-this", 2048)]


async def test_a_providers_api_may_be_elsewhere_than_below_v1() -> None:
    """Models are listed and asked for below the path that the settings name."""

    async def answer(call: Call) -> None:
        listed = b'{"data":[{"id":"big"}]}'
        is_list = call.head.startswith(b"GET /v1beta/openai/models ")
        await call.send(
            http_response(listed) if is_list else SSE_HEAD + chunked(SAY) + b"0\r\n\r\n"
        )

    async with scripted_engine(answer) as engine:
        base = f"{engine.url}/v1beta/openai"
        upstream = UpstreamEntry(name="cloud", base_url=base, api_path="")
        async with running_gateway(upstreams=(upstream,)) as served:
            await until(served, up)
            async with gpt(served.url, "none") as sdk:
                stream = await sdk.chat.completions.create(model="big", messages=HI, stream=True)
                assert [piece async for piece in stream]
        heads = [call.head.partition(b" HTTP")[0] for call in engine.calls]
    assert heads[-1] == b"POST /v1beta/openai/chat/completions"


async def test_listings_are_followed() -> None:
    """A model that appears is served, one that vanishes is not."""
    provider = Provider([{"id": "old"}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
    ):
        await until(served, up)
        provider.models = [{"id": "new"}]
        snapshot = await until(served, lambda s: s.model("new") is not None)
        assert snapshot.model("old") is None


async def test_a_dead_server_is_left_and_found_again() -> None:
    """A refused key or a dead socket makes it unreachable, with the reason; its return is noticed.

    Meanwhile its models are unavailable, not unknown: nobody repeats a request for what does not exist.
    """
    provider = Provider([{"id": "m"}], key=b"right")
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider, key="wrong"),)) as served,
    ):
        snapshot = await until(served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE)
        assert "who are you" in (snapshot.nodes[0].reason or "")
        async with httpx.AsyncClient(base_url=served.url) as http:
            assert (await http.get("/ready")).status_code == 503
            provider.key = b"wrong"
            await until(served, up)
            assert (await http.get("/ready")).status_code == 200
            provider.key = b"right"
            await until(served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE)
            missed = await http.post("/v1/chat/completions", json={"model": "m", "messages": HI})
            assert (missed.status_code, missed.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("head", [b"401 Unauthorized", b"301 Moved\r\nlocation: https://x/?secret"])
async def test_what_the_settings_have_wrong_is_no_fault_of_the_client(head: bytes) -> None:
    """A refused key of the gateway's is not told as the client's, nor a redirect's page as an answer."""
    provider = Provider(
        [{"id": "m"}], says=http_response(b'{"error":{"message":"bad key secret***"}}', head)
    )
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await until(served, up)
        for path, asked_for in (
            ("/v1/chat/completions", {"messages": HI}),
            ("/v1/messages", {"messages": HI, "max_tokens": 9}),
            ("/v1/responses", {"input": "hi"}),
        ):
            for stream in (False, True):
                body = {"model": "m", "stream": stream} | asked_for
                answer = await http.post(path, json=body)
                assert answer.status_code >= 500  # after some of them nobody is asked
                assert '"src":"cortex"' in answer.text or path == "/v1/messages"
                assert "secret" not in answer.text


async def test_of_two_servers_on_one_host_each_gets_its_own_key() -> None:
    """As behind a proxy for providers, where one has a path below that of another."""
    provider = Provider([{"id": "m"}])
    async with serving(provider):
        above = entry(provider, "a", key="one", refresh=60.0, models=["x"])
        base = f"{provider.url}/other"
        below = UpstreamEntry(name="b", base_url=base, key="two", api_path="/api", models=["y"])
        async with running_gateway(upstreams=(above, below)) as served:
            addresses = served.gateway.context.addresses
            for upstream, key in ((above, b"Bearer one"), (below, b"Bearer two")):
                found = addresses.find(upstream.endpoint)
                told = (found.authorization, found.api_path.decode())
                assert told == (key, upstream.api_path)


def test_a_listing_that_fails_once_is_soon_tried_again() -> None:
    """A provider that is busy for a moment is not missed until the next regular listing."""
    first = RECONNECT_BACKOFF.initial_s
    delays = [listing_delay_s(60.0, failures) for failures in (0, 1, 2, 9, 9999)]
    assert delays == [60.0, first, 2 * first, 60.0, 60.0]
    assert listing_delay_s(0.1, 1) == 0.1


async def test_a_server_is_trusted_by_the_authority_that_is_named(tmp_path: Path) -> None:
    """Over HTTPS its certificate must be of that authority, for listings and for requests."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    provider = Provider([{"id": "m"}])
    async with scripted_engine(provider.script, tls=tls) as engine:
        provider.url = engine.url
        trusted, stranger = entry(provider, ca=tmp_path / "ca.pem"), entry(provider)
        async with (
            running_gateway(upstreams=(trusted,)) as served,
            httpx.AsyncClient(base_url=served.url) as http,
        ):
            await until(served, up)
            body = {"model": "m", "messages": HI, "stream": True}
            answered = await http.post("/v1/chat/completions", json=body)
            assert (answered.status_code, b"hello" in answered.content) == (200, True)
        async with running_gateway(upstreams=(stranger,)) as served:
            snapshot = await until(served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE)
            assert "certificate verify failed" in (snapshot.nodes[0].reason or "")


async def test_a_model_in_both_places_is_balanced() -> None:
    """Requests at once are shared between a node and an upstream of the same model."""
    provider = Provider([{"id": "m"}])
    access_control = asyncio.Event()
    local: list[Call] = []

    async def slow(call: Call) -> None:
        local.append(call)
        await access_control.wait()
        await call.send(SSE_HEAD + chunked(SAY) + b"0\r\n\r\n")

    async with (
        serving(provider),
        scripted_engine(slow) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(
            neurons={"n1": neuron.url}, upstreams=(entry(provider, parallel=512),)
        ) as served,
        gpt(served.url) as sdk,
    ):
        await until(served, lambda s: len(s.instances()) == 2)

        async def ask() -> None:
            stream = await sdk.chat.completions.create(model="m", messages=HI, stream=True)
            assert [piece async for piece in stream]

        tasks = [asyncio.create_task(ask()) for _ in range(8)]
        async with asyncio.timeout(10):
            while not (local and provider.asked):
                await asyncio.sleep(0)
        access_control.set()
        await asyncio.gather(*tasks)
        await served.wait_idle()
        assert len(local) + len(provider.asked) == 8
        assert [i.in_flight for i in served.gateway.fleet.snapshot.instances()] == [0, 0]


async def test_overflow_is_asked_only_while_the_own_instances_are_full() -> None:
    """The first requests stay at home, the next goes out, and with a free slot all stay at home again."""
    provider = Provider([{"id": "m"}])
    async with (
        serving(provider),
        scripted_engine(say(SAY)) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(
            neurons={"n1": neuron.url}, upstreams=(entry(provider, overflow=True),)
        ) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await until(served, lambda s: len(s.instances()) == 2)
        fleet = served.gateway.fleet
        (home,) = [t for t in fleet.ready("m") if not t.overflow]

        async def asked_at() -> str:
            body = {"model": "m", "messages": HI, "stream": True}
            answered = await http.post("/v1/chat/completions", json=body)
            return answered.headers["x-cortex-node"]

        for _ in range(home.slots - 1):
            fleet.begin_request(home)
        assert await asked_at() == "n1"
        fleet.begin_request(home)
        assert await asked_at() == "cloud"
        fleet.end_request(home)
        assert await asked_at() == "n1"
        for _ in range(home.slots - 1):
            fleet.end_request(home)


@pytest.mark.parametrize("retries", [True, False])
async def test_a_broken_server_is_retried_elsewhere_unless_that_is_off(retries: bool) -> None:
    """With retries another server answers; without, the client is told at once."""
    bad, good = Provider([{"id": "m"}], broken=True), Provider([])
    async with (
        serving(bad),
        serving(good),
        running_gateway(
            upstreams=(entry(bad, "a", retries=retries), entry(good, "b", refresh=1.0)),
        ) as served,
        gpt(served.url) as sdk,
    ):
        await until(served, lambda s: len(s.instances()) == 1)
        good.models = [{"id": "m"}]  # of equals the first that is there is asked
        await until(served, lambda s: len(s.instances()) == 2)

        async def ask() -> bool:
            try:
                stream = await sdk.chat.completions.create(model="m", messages=HI, stream=True)
            except openai.InternalServerError:
                return False
            return bool([piece async for piece in stream])

        assert await ask() is retries
        assert (len(bad.asked), len(good.asked)) == (1, int(retries))


@pytest.mark.parametrize("breaker", [True, False])
async def test_a_server_that_keeps_failing_is_left_alone_unless_that_is_off(breaker: bool) -> None:
    """The breaker opens after three failures; switched off, every request tries the server."""
    bad = Provider([{"id": "m"}], broken=True)
    async with (
        serving(bad),
        running_gateway(upstreams=(entry(bad, breaker=breaker, retries=False),)) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await until(served, up)
        for _ in range(3):
            body = {"model": "m", "messages": HI}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 502
        failing = served.gateway.fleet.snapshot.instances()[0].failing
        assert (failing is not None) is breaker
        again = await http.post("/v1/chat/completions", json=body)
        assert again.status_code == (503 if breaker else 502)


async def test_nothing_is_ever_loaded_or_ended_there() -> None:
    """Every verb of an operator that would is refused, and an idle time does not end its instances."""
    provider = Provider([{"id": "m"}])
    async with (
        serving(provider),
        running_gateway(
            ModelConfig(id="m", harness="embedded", ttl=0.01), upstreams=(entry(provider),)
        ) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        snapshot = await until(served, lambda s: len(s.instances()) == 1)
        assert snapshot.instances()[0].pinned
        with pytest.raises(Conflict, match="ends nothing"):
            await operator.unload(UnloadModelRequest(model="m"))
        with pytest.raises(Conflict, match="is an upstream"):
            await operator.drain(DrainNodeRequest(node="cloud"))
        with pytest.raises(Conflict, match="is an upstream"):
            await operator.load(LoadModelRequest(model="m", node="cloud"))
        upkeep, now = DesiredState(0.01, 10.0), 100.0
        model_config = served.gateway.fleet.model_config("m")
        assert model_config is not None
        for later in (now, now + 3600):
            assert upkeep.actions(snapshot, [model_config], later).unload == ()


async def test_a_mistyped_name_suggests_what_only_a_node_knows() -> None:
    """A model without a profile is among the names that may have been meant, in every dialect and to operators."""
    provider = Provider([{"id": "gpt-large"}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await until(served, up)
        wrong = {"model": "gpt-lage", "messages": HI, "max_tokens": 5}
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
            answer = await http.post(path, json=wrong | {"input": "hi"})
            assert (answer.status_code, "did you mean 'gpt-large'?" in answer.text) == (404, True)
        with pytest.raises(ModelNotFound) as raised:
            await operator.pin(PinModelRequest(model="gpt-lage"))
        assert raised.value.hints[0] == "did you mean 'gpt-large'?"
        with pytest.raises(ModelNotFound):
            async with operator.log("gpt-lage"):
                pass


@pytest.mark.parametrize("name", ["org/model", "a/../b", "..", "/mnt/x//y", "what?#%2F"])
async def test_a_model_without_a_profile_is_described_whatever_it_is_called(name: str) -> None:
    """What is listed can be described; only a load of it is refused, with the reason."""
    provider = Provider([{"id": name}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        await until(served, up)
        assert (await operator.model(name)).model == name
        with pytest.raises(ModelNotFound, match="only there as cloud has it"):
            await operator.load(LoadModelRequest(model=name))


async def test_settings_that_are_read_again_move_an_upstream() -> None:
    """An upstream that is added, changed or removed while the gateway runs is followed."""
    first, second = Provider([{"id": "m"}]), Provider([{"id": "n"}])
    async with (
        serving(first),
        serving(second),
        running_gateway(upstreams=(entry(first),)) as served,
    ):
        await until(served, lambda s: s.model("m") is not None)
        gateway = served.gateway

        async def use(*upstreams: UpstreamEntry) -> None:
            config = gateway.config.model_copy(update={"upstreams": upstreams})
            await gateway.apply(GatewayConfig.model_validate(config), Catalogue())

        await use(entry(first), entry(second, "other"))
        await until(served, lambda s: s.model("n") is not None)
        await use(entry(second, "other", prefix="x/"))
        snapshot = await until(served, lambda s: s.model("x/n") is not None)
        assert [node.name for node in snapshot.nodes] == ["other"]
        assert snapshot.model("n") is None


@pytest.mark.parametrize(
    ("upstreams", "words"),
    [
        (
            [{"name": "a", "base_url": "http://x"}, {"name": "a", "base_url": "http://y"}],
            "have the name",
        ),
        ([{"name": "a", "base_url": "http://x/v1"}, {"name": "b", "base_url": "http://x"}], "URL"),
    ],
)
def test_two_upstreams_are_not_to_be_mixed_up(upstreams: list[dict[str, str]], words: str) -> None:
    """Names and URLs of upstreams differ, or the settings are refused."""
    with pytest.raises(ValueError, match=words):
        GatewayConfig.model_validate({"upstreams": upstreams})
