"""External upstreams in a fleet beside nodes: a whole gateway over scripted providers."""

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
from clients_kit import (
    HELLO_STREAM,
    MESSAGES,
    anthropic_client,
    openai_client,
    request_body,
    stream_response,
)
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
    """An OpenAI-compatible server.

    Attributes:
        models: the models that it lists; None if it has no such route.
        key: the key that it requires.
        broken: it closes the connection of every request except listings.
        response: its response to these requests, instead of a chat stream.
        requests: the requests that it received, except listings.
    """

    models: list[dict[str, object]] | None
    key: bytes | None = None
    broken: bool = False
    response: bytes | None = None
    requests: list[Call] = field(default_factory=list)
    url: str = ""

    async def respond(self, call: Call) -> None:
        """Respond to one request."""
        if self.key is not None and b"authorization: Bearer " + self.key + b"\r\n" not in call.head:
            await call.send(
                http_response(b'{"error":{"message":"who are you"}}', b"401 Unauthorized")
            )
        elif call.head.startswith(b"GET /v1/models "):
            body = json.dumps({"object": "list", "data": self.models}).encode()
            status = b"404 Not Found" if self.models is None else b"200 OK"
            await call.send(http_response(body, status))
        else:
            self.requests.append(call)
            if self.broken:
                call.writer.close()
            elif self.response is not None:
                await call.send(self.response)
            else:
                await call.send(SSE_HEAD + chunked(HELLO_STREAM) + b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[ScriptedEngine]:
    """Run the provider on a free port."""
    async with scripted_engine(provider.respond) as engine:
        provider.url = engine.url
        yield engine


def entry(provider: Provider, name: str = "cloud", **more: object) -> UpstreamEntry:
    """Return its entry in cortex.toml."""
    fields = {"name": name, "base_url": f"{provider.url}/v1", "refresh": 0.05} | more
    return UpstreamEntry.model_validate(fields)


async def wait_for_snapshot(
    served: InProcessGateway, condition: Callable[[FleetSnapshot], bool]
) -> FleetSnapshot:
    """Wait until the gateway's snapshot satisfies the condition."""
    fleet, changed = served.gateway.fleet, asyncio.Event()
    fleet.on_change(changed.set)
    async with asyncio.timeout(10):
        while not condition(snapshot := fleet.snapshot):
            changed.clear()
            await changed.wait()
    fleet.remove_listener(changed.set)
    return snapshot


def all_nodes_up(snapshot: FleetSnapshot) -> bool:
    """Return whether all nodes are up."""
    return all(node.state is NodeState.UP for node in snapshot.nodes)


async def test_upstream_models_are_listed_and_served_with_its_key(
    tmp_path: Path,
) -> None:
    """The prefix is removed from model names, and the client's key is never forwarded."""
    secret = tmp_path / "cloud.key"
    secret.write_text("sk-cloud\n")
    listed = [{"id": "big", "max_model_len": 4096}, {"id": "embed-1"}, {"id": "line\r\nbreak"}]
    provider = Provider(listed, key=b"sk-cloud")
    async with serving(provider):
        upstream = entry(provider, prefix="cloud/", models=("b*", "line*"), key_file=secret)
        async with running_gateway(upstreams=(upstream,)) as served:
            snapshot = await wait_for_snapshot(served, all_nodes_up)
            assert [(m.id, m.context) for m in snapshot.models] == [("cloud/big", 4096)]
            async with openai_client(served.url, "sk-mine") as sdk:
                stream = await sdk.chat.completions.create(
                    model="cloud/big", messages=MESSAGES, stream=True
                )
                assert {piece.model async for piece in stream} == {"cloud/big"}
            async with (
                anthropic_client(served.url, "sk-mine") as sdk,
                sdk.messages.stream(
                    model="cloud/big", max_tokens=5, messages=MESSAGES
                ) as message_stream,
            ):
                assert (await message_stream.get_final_message()).content[0].text == "hello"
    assert [request_body(call)["model"] for call in provider.requests] == ["big", "big"]
    assert all(b"sk-mine" not in call.head for call in provider.requests)


async def test_upstream_without_a_listing_offers_the_configured_models() -> None:
    """Names without a pattern are offered without a check."""
    provider = Provider(None)
    async with serving(provider):
        upstream = entry(provider, models=("only-this", "not-*"), context=2048)
        async with running_gateway(upstreams=(upstream,)) as served:
            snapshot = await wait_for_snapshot(served, all_nodes_up)
    assert [(m.id, m.context) for m in snapshot.models] == [("only-this", 2048)]


async def test_upstream_api_path_is_configurable() -> None:
    """Models are listed and requested below the configured path."""

    async def answer(call: Call) -> None:
        listed = b'{"data":[{"id":"big"}]}'
        is_list = call.head.startswith(b"GET /v1beta/openai/models ")
        await call.send(
            http_response(listed) if is_list else SSE_HEAD + chunked(HELLO_STREAM) + b"0\r\n\r\n"
        )

    async with scripted_engine(answer) as engine:
        base = f"{engine.url}/v1beta/openai"
        upstream = UpstreamEntry(name="cloud", base_url=base, api_path="")
        async with running_gateway(upstreams=(upstream,)) as served:
            await wait_for_snapshot(served, all_nodes_up)
            async with openai_client(served.url, "none") as sdk:
                stream = await sdk.chat.completions.create(
                    model="big", messages=MESSAGES, stream=True
                )
                assert [piece async for piece in stream]
        heads = [call.head.partition(b" HTTP")[0] for call in engine.calls]
    assert heads[-1] == b"POST /v1beta/openai/chat/completions"


async def test_listing_changes_are_followed() -> None:
    """A model that appears is served, one that disappears is not."""
    provider = Provider([{"id": "old"}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
    ):
        await wait_for_snapshot(served, all_nodes_up)
        provider.models = [{"id": "new"}]
        snapshot = await wait_for_snapshot(served, lambda s: s.model("new") is not None)
        assert snapshot.model("old") is None


async def test_unreachable_upstream_is_found_again() -> None:
    """A rejected key or a lost connection makes it unreachable, with the reason, until it responds again.

    Meanwhile its models are unavailable (503), not unknown (404), so that clients retry.
    """
    provider = Provider([{"id": "m"}], key=b"right")
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider, key="wrong"),)) as served,
    ):
        snapshot = await wait_for_snapshot(
            served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE
        )
        assert "who are you" in (snapshot.nodes[0].reason or "")
        async with httpx.AsyncClient(base_url=served.url) as http:
            assert (await http.get("/ready")).status_code == 503
            provider.key = b"wrong"
            await wait_for_snapshot(served, all_nodes_up)
            assert (await http.get("/ready")).status_code == 200
            provider.key = b"right"
            await wait_for_snapshot(served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE)
            missed = await http.post(
                "/v1/chat/completions", json={"model": "m", "messages": MESSAGES}
            )
            assert (missed.status_code, missed.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("head", [b"401 Unauthorized", b"301 Moved\r\nlocation: https://x/?secret"])
async def test_misconfigured_upstream_is_not_a_client_error(head: bytes) -> None:
    """A rejected key of the gateway is not a 401 for the client, and a redirect is not a response."""
    provider = Provider(
        [{"id": "m"}], response=http_response(b'{"error":{"message":"bad key secret***"}}', head)
    )
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await wait_for_snapshot(served, all_nodes_up)
        for path, fields in (
            ("/v1/chat/completions", {"messages": MESSAGES}),
            ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}),
            ("/v1/responses", {"input": "hi"}),
        ):
            for stream in (False, True):
                body = {"model": "m", "stream": stream} | fields
                answer = await http.post(path, json=body)
                assert answer.status_code >= 500  # after some failures the circuit breaker is open
                assert '"src":"cortex"' in answer.text or path == "/v1/messages"
                assert "secret" not in answer.text


async def test_upstreams_on_one_host_get_their_own_keys() -> None:
    """One can have a path below that of the other, as behind a proxy for several providers."""
    provider = Provider([{"id": "m"}])
    async with serving(provider):
        above = entry(provider, "a", key="one", refresh=60.0, models=["x"])
        base = f"{provider.url}/other"
        below = UpstreamEntry(name="b", base_url=base, key="two", api_path="/api", models=["y"])
        async with running_gateway(upstreams=(above, below)) as served:
            addresses = served.gateway.context.addresses
            for upstream, key in ((above, b"Bearer one"), (below, b"Bearer two")):
                endpoint = addresses.find(upstream.endpoint)
                assert (endpoint.authorization, endpoint.api_path.decode()) == (
                    key,
                    upstream.api_path,
                )


def test_failed_listing_is_retried_soon() -> None:
    """A provider that is busy for a moment is not missing until the next regular listing."""
    pauses = [listing_delay_s(60.0, failures) for failures in (0, 1, 2, 9, 9999)]
    first = RECONNECT_BACKOFF.initial_s
    assert pauses == [60.0, first, 2 * first, 60.0, 60.0]
    assert listing_delay_s(0.1, 1) == 0.1


async def test_upstream_certificate_is_verified_with_the_configured_ca(tmp_path: Path) -> None:
    """Over HTTPS, the CA applies to listings and to requests."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    provider = Provider([{"id": "m"}])
    async with scripted_engine(provider.respond, tls=tls) as engine:
        provider.url = engine.url
        trusting, untrusting = entry(provider, ca=tmp_path / "ca.pem"), entry(provider)
        async with (
            running_gateway(upstreams=(trusting,)) as served,
            httpx.AsyncClient(base_url=served.url) as http,
        ):
            await wait_for_snapshot(served, all_nodes_up)
            body = {"model": "m", "messages": MESSAGES, "stream": True}
            response = await http.post("/v1/chat/completions", json=body)
            assert (response.status_code, b"hello" in response.content) == (200, True)
        async with running_gateway(upstreams=(untrusting,)) as served:
            snapshot = await wait_for_snapshot(
                served, lambda s: s.nodes[0].state is NodeState.UNREACHABLE
            )
            assert "certificate verify failed" in (snapshot.nodes[0].reason or "")


async def test_model_on_a_node_and_an_upstream_is_balanced() -> None:
    """Concurrent requests are distributed between a node and an upstream with the same model."""
    provider = Provider([{"id": "m"}])
    release = asyncio.Event()
    local: list[Call] = []

    async def slow(call: Call) -> None:
        local.append(call)
        await release.wait()
        await call.send(SSE_HEAD + chunked(HELLO_STREAM) + b"0\r\n\r\n")

    async with (
        serving(provider),
        scripted_engine(slow) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(
            neurons={"n1": neuron.url}, upstreams=(entry(provider, parallel=512),)
        ) as served,
        openai_client(served.url) as sdk,
    ):
        await wait_for_snapshot(served, lambda s: len(s.instances()) == 2)

        async def ask() -> None:
            stream = await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            assert [piece async for piece in stream]

        tasks = [asyncio.create_task(ask()) for _ in range(8)]
        async with asyncio.timeout(10):
            while not (local and provider.requests):
                await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        await served.wait_idle()
        assert len(local) + len(provider.requests) == 8
        assert [i.in_flight for i in served.gateway.fleet.snapshot.instances()] == [0, 0]


async def test_overflow_upstream_is_used_only_if_local_instances_are_full() -> None:
    """With a free local slot, requests stay local again."""
    provider = Provider([{"id": "m"}])
    async with (
        serving(provider),
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(
            neurons={"n1": neuron.url}, upstreams=(entry(provider, overflow=True),)
        ) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await wait_for_snapshot(served, lambda s: len(s.instances()) == 2)
        fleet = served.gateway.fleet
        (home,) = [t for t in fleet.ready("m") if not t.overflow]

        async def responding_node() -> str:
            body = {"model": "m", "messages": MESSAGES, "stream": True}
            response = await http.post("/v1/chat/completions", json=body)
            return response.headers["x-cortex-node"]

        for _ in range(home.slots - 1):
            fleet.begin_request(home)
        assert await responding_node() == "n1"
        fleet.begin_request(home)
        assert await responding_node() == "cloud"
        fleet.end_request(home)
        assert await responding_node() == "n1"
        for _ in range(home.slots - 1):
            fleet.end_request(home)


@pytest.mark.parametrize("retries", [True, False])
async def test_failed_request_is_retried_elsewhere_unless_disabled(retries: bool) -> None:
    """With retries another upstream responds; without, the client gets the error."""
    bad, good = Provider([{"id": "m"}], broken=True), Provider([])
    async with (
        serving(bad),
        serving(good),
        running_gateway(
            upstreams=(entry(bad, "a", retries=retries), entry(good, "b", refresh=1.0)),
        ) as served,
        openai_client(served.url) as sdk,
    ):
        await wait_for_snapshot(served, lambda s: len(s.instances()) == 1)
        good.models = [{"id": "m"}]  # of equal instances, the first one has the first turn
        await wait_for_snapshot(served, lambda s: len(s.instances()) == 2)

        async def ask() -> bool:
            try:
                stream = await sdk.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True
                )
            except openai.InternalServerError:
                return False
            return bool([piece async for piece in stream])

        assert await ask() is retries
        assert (len(bad.requests), len(good.requests)) == (1, int(retries))


@pytest.mark.parametrize("breaker", [True, False])
async def test_circuit_breaker_opens_unless_disabled(breaker: bool) -> None:
    """It opens after three failures; if disabled, every request tries the upstream."""
    bad = Provider([{"id": "m"}], broken=True)
    async with (
        serving(bad),
        running_gateway(upstreams=(entry(bad, breaker=breaker, retries=False),)) as served,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await wait_for_snapshot(served, all_nodes_up)
        for _ in range(3):
            body = {"model": "m", "messages": MESSAGES}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 502
        failing = served.gateway.fleet.snapshot.instances()[0].failing
        assert (failing is not None) is breaker
        again = await http.post("/v1/chat/completions", json=body)
        assert again.status_code == (503 if breaker else 502)


async def test_nothing_is_loaded_or_unloaded_on_an_upstream() -> None:
    """Operator actions that would do so are rejected, and a TTL does not end its instances."""
    provider = Provider([{"id": "m"}])
    async with (
        serving(provider),
        running_gateway(
            ModelConfig(id="m", harness="embedded", ttl=0.01), upstreams=(entry(provider),)
        ) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        snapshot = await wait_for_snapshot(served, lambda s: len(s.instances()) == 1)
        assert snapshot.instances()[0].pinned
        with pytest.raises(Conflict, match="cannot unload it"):
            await operator.unload(UnloadModelRequest(model="m"))
        with pytest.raises(Conflict, match="is an upstream"):
            await operator.drain(DrainNodeRequest(node="cloud"))
        with pytest.raises(Conflict, match="is an upstream"):
            await operator.load(LoadModelRequest(model="m", node="cloud"))
        desired_state, now = DesiredState(0.01, 10.0), 100.0
        model_config = served.gateway.fleet.model_config("m")
        assert model_config is not None
        for at in (now, now + 3600):
            assert desired_state.actions(snapshot, [model_config], at).unload == ()


async def test_mistyped_name_suggests_models_without_a_config() -> None:
    """A model without a model config is among the suggestions, in every dialect and for operators."""
    provider = Provider([{"id": "gpt-large"}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        await wait_for_snapshot(served, all_nodes_up)
        chat = {"model": "gpt-lage", "messages": MESSAGES, "max_tokens": 5}
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/messages", chat),
            ("/v1/responses", {"model": "gpt-lage", "input": "hi"}),
        ):
            answer = await http.post(path, json=body)
            assert (answer.status_code, "did you mean 'gpt-large'?" in answer.text) == (404, True)
        with pytest.raises(ModelNotFound) as error:
            await operator.pin(PinModelRequest(model="gpt-lage"))
        assert error.value.hints[0] == "did you mean 'gpt-large'?"
        with pytest.raises(ModelNotFound):
            async with operator.log("gpt-lage"):
                pass


@pytest.mark.parametrize("name", ["org/model", "a/../b", "..", "/mnt/x//y", "what?#%2F"])
async def test_model_without_a_config_is_described(name: str) -> None:
    """Every listed model can be described; only a load of it is rejected, with the reason."""
    provider = Provider([{"id": name}])
    async with (
        serving(provider),
        running_gateway(upstreams=(entry(provider),)) as served,
        OperatorClient(served.url, who="the gateway") as operator,
    ):
        await wait_for_snapshot(served, all_nodes_up)
        assert (await operator.model(name)).model == name
        with pytest.raises(ModelNotFound, match="only available where it is loaded: cloud"):
            await operator.load(LoadModelRequest(model=name))


async def test_reloaded_upstreams_are_followed() -> None:
    """Upstreams can be added, changed and removed while the gateway runs."""
    first, second = Provider([{"id": "m"}]), Provider([{"id": "n"}])
    async with (
        serving(first),
        serving(second),
        running_gateway(upstreams=(entry(first),)) as served,
    ):
        await wait_for_snapshot(served, lambda s: s.model("m") is not None)
        gateway = served.gateway

        async def use(*upstreams: UpstreamEntry) -> None:
            config = gateway.config.model_copy(update={"upstreams": upstreams})
            await gateway.apply(GatewayConfig.model_validate(config), Catalogue())

        await use(entry(first), entry(second, "other"))
        await wait_for_snapshot(served, lambda s: s.model("n") is not None)
        await use(entry(second, "other", prefix="x/"))
        snapshot = await wait_for_snapshot(served, lambda s: s.model("x/n") is not None)
        assert [node.name for node in snapshot.nodes] == ["other"]
        assert snapshot.model("n") is None


@pytest.mark.parametrize(
    ("upstreams", "message"),
    [
        (
            [{"name": "a", "base_url": "http://x"}, {"name": "a", "base_url": "http://y"}],
            "two nodes have the name",
        ),
        ([{"name": "a", "base_url": "http://x/v1"}, {"name": "b", "base_url": "http://x"}], "URL"),
    ],
)
def test_duplicate_upstreams_are_rejected(upstreams: list[dict[str, str]], message: str) -> None:
    """Names and URLs of upstreams must be unique."""
    with pytest.raises(ValueError, match=message):
        GatewayConfig.model_validate({"upstreams": upstreams})
