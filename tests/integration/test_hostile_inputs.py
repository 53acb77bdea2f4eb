"""Hostile clients, nodes and upstreams against a whole gateway: nothing blocks its event loop or grows its memory."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from rigs.engine import Call, http_response, scripted_engine
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.loop_load import measured_loop
from rigs.neuron import scripted_neuron
from rigs.server import serving

from cortex_common.config.access import KeyEntry
from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import UpstreamEntry
from cortex_common.schema.fleet import NodeState
from cortex_common.schema.keys import Scope
from cortex_server.auth.keys import hash_of

MAX_PASS_S = 0.05
"""Longest pass of the event loop: how much one request may delay the tokens of all others."""

MIB = 2**20
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"

Answer = tuple[int, dict[str, str], bytes]


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """Send one request and return status, headers and body; runs in a thread."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def form(boundary: str, model: str) -> bytes:
    """Return a multipart body that names a model."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    return f"{head}{model}\r\n--{boundary}--\r\n".encode()


def chat(**fields: object) -> bytes:
    """Return a chat request."""
    return json.dumps({"model": "m", "messages": []} | fields).encode()


LONG = "x" * (2 * MIB)
CLIENTS: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "a model name of 2 MiB": ("POST", CHAT, chat(model=LONG), {}),
    "a model name of 2 MiB in a form": (
        *("POST", "/v1/audio/transcriptions", form("b", LONG)),
        {"content_type": "multipart/form-data; boundary=b"},
    ),
    "a model name of 40 KiB in the query": ("POST", f"{CHAT}?model={'x' * 40_000}", b"{}", {}),
    "a model name of 2 MiB for Anthropic": ("POST", MESSAGES, chat(model=LONG, max_tokens=1), {}),
    "a model name of 2 MiB for Responses": ("POST", RESPONSES, chat(model=LONG, input="a"), {}),
    "a model name with escapes": ("POST", CHAT, b'{"model":"%b"}' % (b"\\u0041" * 300_000), {}),
    "a misspelled name": ("POST", CHAT, chat(model="model-42-of-a-very-lage-fleet"), {}),
    "a name of the maximal length": ("POST", CHAT, chat(model="model-" * 85), {}),
    "a model path of 40 KiB": ("GET", f"/v1/models/{'x/' * 20_000}", b"", {}),
    "a path of 40 KiB": ("GET", f"/{'x/' * 20_000}", b"", {}),
    "nested arrays": ("POST", CHAT, b"[" * MIB, {}),
    "nested objects": ("POST", CHAT, b'{"a":' * 200_000, {}),
    "an integer of 1 MiB": ("POST", CHAT, b'{"model":"m","max_tokens":%b}' % (b"9" * MIB), {}),
    "a lone surrogate": ("POST", CHAT, b'{"model":"\\ud800"}', {}),
    "a key for 1 MiB of models": (
        *(
            "POST",
            "/operator/v1/keys",
            json.dumps({"name": "k", "models": ["m"] * 200_000}).encode(),
        ),
        {"content_type": "application/json"},
    ),
    "a control request of 2 MiB": (
        *("POST", "/operator/v1/models/load", chat(model=LONG)),
        {"content_type": "application/json"},
    ),
    "a huge limit": (
        *("POST", "/operator/v1/keys"),
        b'{"name":"k","limits":{"requests_per_minute":1%b}}' % (b"0" * 400),
        {"content_type": "application/json"},
    ),
    "a huge number of lines": ("GET", f"/operator/v1/logs?lines={2**63}", b"", {}),
    "a huge number of requests": ("GET", f"/operator/v1/requests?limit={2**63}", b"", {}),
    "a page of 40 KiB": ("GET", f"/v1/models?after_id={'x' * 40_000}", b"", {"x_api_key": "all"}),
    "a far date": ("GET", "/operator/v1/usage?since=9999-12-31&until=0001-01-01", b"", {}),
    "a percent-encoded line end": (
        "GET",
        f"/operator/v1/models/{quote(chr(13) + chr(10))}",
        b"",
        {},
    ),
}

FLEET = tuple(
    ModelConfig(id=f"model-{number}-of-a-very-large-fleet", harness="h") for number in range(300)
)


async def test_no_client_delays_the_others():
    """Every hostile request is answered with a 4xx of a few KiB, within 50 ms of computing."""
    key = KeyEntry(name="all", hash=hash_of("all"), scopes=tuple(Scope))
    async with running_gateway(*FLEET, keys=(key,)) as served, measured_loop() as load:
        slow: dict[str, float] = {}
        for name, (method, path, body, headers) in CLIENTS.items():
            sent = {"authorization": "Bearer all"} | headers
            for _ in range(2):  # the first request imports and compiles
                load.reset()
                status, _, answer = await asyncio.to_thread(
                    lambda m=method, p=path, b=body, h=sent: send(served.port, m, p, b, **h)
                )
                passed = load.reset()
            assert status < 500, (name, status, answer[:300])
            assert len(answer) < 100_000, (name, len(answer))
            if passed > MAX_PASS_S:
                slow[name] = passed
        assert slow == {}
        assert load.memory_mb < 250


async def test_a_large_control_body_is_refused_from_the_head():
    """The limit for routes that take names and numbers is not that of inference."""
    key = KeyEntry(name="all", hash=hash_of("all"), scopes=tuple(Scope))
    async with running_gateway(keys=(key,)) as served:

        def announce() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
            connection.putrequest("POST", "/operator/v1/models/load")
            connection.putheader("authorization", "Bearer all")
            connection.putheader("content-length", str(2 * MIB))
            connection.endheaders()
            status = connection.getresponse().status
            connection.close()
            return status

        assert await asyncio.to_thread(announce) == 413


def listing(count: int) -> bytes:
    """Return a model list."""
    return json.dumps({"data": [{"id": f"model-{number}"} for number in range(count)]}).encode()


def compressed(size: int) -> bytes:
    """Return a response that expands a thousandfold."""
    body = gzip.compress(b'{"data":[' + b" " * size + b"]}")
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


UPSTREAMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "100,000 models": (lambda: http_response(listing(100_000)), "more than 1000"),
    "a large body": (lambda: http_response(b" " * (8 * MIB)), "larger than"),
    "a gzip bomb": (lambda: compressed(200 * MIB), "compressed"),
    "an endless body": (
        lambda: b"HTTP/1.1 200 OK\r\n\r\n" + b'{"data":[' + b" " * (16 * MIB),
        "larger than",
    ),
    "an error of 8 MiB": (lambda: http_response(b"x" * (8 * MIB), b"500 No"), "larger than"),
}


async def wait_unreachable(served: InProcessGateway, node: str) -> str:
    """Wait until a node has failed, and return the reason."""
    async with asyncio.timeout(30):
        while True:
            view = served.gateway.fleet.node_snapshot.node(node)
            assert view is not None
            if view.state is NodeState.UNREACHABLE:
                return view.reason or ""
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", UPSTREAMS)
async def test_no_model_list_delays_the_requests_of_others(name: str):
    """An upstream's list is read up to a limit, in size and in number."""
    make, reason = UPSTREAMS[name]
    response = make()

    async def answer(call: Call) -> None:
        call.writer.write(response)
        await call.wait_closed()

    # The scripted upstream runs on the same loop: what it computes is measured too, so it only writes.
    async with scripted_engine(answer) as engine:
        entry = UpstreamEntry(name="cloud", base_url=engine.url)
        async with running_gateway(upstreams=(entry,)) as served, measured_loop() as load:
            assert reason in await wait_unreachable(served, "cloud")
            assert load.memory_mb < 150
            assert load.pass_s < MAX_PASS_S


STATUS = {
    "health": {"uptime_secs": 1},
    "models": [{"id": "m", "harness": "h", "status": "ready", "instance_id": "m-0"}],
}


def with_model(**fields: object) -> dict[str, object]:
    """Return a status report whose instance has these fields."""
    model = STATUS["models"][0] | fields
    return STATUS | {"models": [model]}


REPORTS = {
    "an id with a line end": with_model(instance_id="m\r\nset-cookie: a=b"),
    "a model with a line end": with_model(id="m\r\nx: y"),
    "memory of 10^400": with_model(vram_used_mb=10**400),
    "a load of infinite seconds": with_model(load_seconds=float("inf")),
    "too many instances": STATUS | {"models": STATUS["models"] * 5000},
    "no report": [],
}


@pytest.mark.parametrize("name", REPORTS)
async def test_an_invalid_report_of_a_node_adds_no_instance(name: str):
    """What is not an instance is left out; without a readable report the node is unreachable, and tried again."""
    discovery = json.dumps({"hostname": "n", "os": "", "kernel": ""}).encode()
    event = b"event: status\ndata: %b\n\n" % json.dumps(REPORTS[name]).encode()
    connected = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET /events"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event)
                writer.close()
                connected.release()
            else:
                writer.write(http_response(discovery))

    async with serving(serve) as url, running_gateway(neurons={"n": url}) as served:
        async with asyncio.timeout(30):
            for _ in range(2):
                await connected.acquire()
        await wait_unreachable(served, "n")
        assert served.gateway.fleet.snapshot.instances() == ()
        assert served.gateway.fleet.ready("m") == []


async def test_a_limited_key_learns_no_other_model():
    """Whether a model exists is not for a key that may not use it."""
    key = KeyEntry(name="one", hash=hash_of("one"), models=("public*",))
    models = [ModelConfig(id=name, harness="h") for name in ("public-1", "secret-1")]
    async with (
        scripted_neuron({}) as node,
        running_gateway(*models, keys=(key,), neurons={"n": node.url}) as served,
    ):
        async with asyncio.timeout(20):
            while served.gateway.fleet.aliases.pending_nodes:
                await asyncio.sleep(0.01)
        auth = {"authorization": "Bearer one"}
        answers = {
            name: await asyncio.to_thread(
                lambda name=name: send(served.port, "POST", CHAT, chat(model=name), **auth)
            )
            for name in ("secret-1", "secret-2", "public-2")
        }
    existing, missing = answers["secret-1"], answers["secret-2"]
    assert existing[0] == missing[0] == 403
    assert existing[2].replace(b"secret-1", b"secret-2") == missing[2]
    assert answers["public-2"][0] == 404
    assert b"public-1" in answers["public-2"][2]
    assert b"secret" not in answers["public-2"][2]
