"""Who gets in: hostile pages in a real browser, proxies in front, and every route of a neuron with every credential."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from chromium import Tab, browser
from engines.served_neuron import ServedNeuron, served
from rigs.engine import scripted_engine
from rigs.fleet import free_port
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.neuron import scripted_neuron
from rigs.server import serving

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.neuron import CpuSection, NeuronConfig, NeuronSection
from cortex_common.net.runtime_dir import operator_sockets
from neuron_server.main import create_runtime, create_server

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
FOREIGN = (
    {"host": "evil.example"},
    {"host": "localhost.evil.example:9090"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://printer"},
    {"sec-fetch-site": "cross-site"},
)


@contextlib.asynccontextmanager
async def neuron(folder: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[ServedNeuron]:
    """Run a neuron without a configured token."""
    section = NeuronSection(listen=listen, state_dir=folder / "state")
    async with served(NeuronConfig(neuron=section, cpu=CpuSection(offer=True))) as node:
        yield node


def routes_of(node: ServedNeuron) -> list[tuple[str, str]]:
    """Return every method and path of a neuron, from its OpenAPI document, and some that it does not list."""
    app = create_server(node.runtime.config, node.runtime).config.app
    paths = app.openapi()["paths"]
    listed = [(m.upper(), path) for path, methods in paths.items() for m in methods]
    return [
        *((m, path.replace("{", "").replace("}", "").replace(":path", "")) for m, path in listed),
        *(
            ("GET", p)
            for p in ("/openapi.json", "/docs", "/redoc", "/", "/nothing", "/engines/x/v1/models")
        ),
        ("POST", "/engines/x/v1/chat/completions"),
        ("OPTIONS", "/models/load"),
        ("PUT", "/models"),
    ]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"])
async def test_a_neuron_accepts_nothing_without_its_own_token(tmp_path: Path, listen: str):
    """On loopback too, for every route and method, before it looks at the body."""
    async with neuron(tmp_path, listen) as node, httpx.AsyncClient(base_url=node.url) as http:
        token = node.runtime.token
        assert (tmp_path / "state" / "token").stat().st_mode & 0o777 == 0o600
        credentials: tuple[dict[str, str], ...] = (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"bearer{token}"},
            {"authorization": f"Basic {base64.b64encode(token.encode()).decode()}"},
            {"x-api-key": token},
            {"cookie": f"token={token}"},
        )
        routes = routes_of(node)
        for method, path in routes:
            for headers in credentials:
                answer = await http.request(method, path, headers=headers, content=b"not json")
                assert answer.status_code == 401, (method, path, headers)
            for headers in FOREIGN:
                answer = await http.request(method, path, headers=headers | node.headers)
                assert answer.status_code == 403, (method, path, headers)
        assert len(routes) > 15
        for path, status in (("/discovery", 200), ("/docs", 404), ("/openapi.json", 200)):
            assert (await http.get(path, headers=node.headers)).status_code == status


async def test_a_neuron_keeps_its_token_and_a_gateway_on_its_host_finds_it(tmp_path: Path):
    """Nothing is pasted, and a restart changes nothing."""
    async with neuron(tmp_path) as node, running_gateway(neurons={"n": node.url}) as gateway:
        token = node.runtime.token
        async with OperatorClient(gateway.url, who="the gateway") as client:
            async with asyncio.timeout(20):
                async for snapshot in client.watch_fleet():
                    if snapshot.nodes[0].state == "up":
                        break
    config = NeuronConfig(neuron=NeuronSection(state_dir=tmp_path / "state"))
    assert create_runtime(config, sources=()).token == token


async def test_the_operator_api_is_closed_over_tcp_and_open_on_the_socket():
    """Without a key, for every route of it; no header, and no absence of headers, opens it."""
    async with (
        running_gateway() as gateway,
        httpx.AsyncClient(base_url=gateway.url) as tcp,
        socket_client(gateway) as local,
    ):
        paths = gateway.gateway.app.openapi()["paths"]
        checked = 0
        for path, methods in paths.items():
            for method in methods:
                if not path.startswith("/operator/") or path.endswith("/events"):
                    continue
                filled = path.replace("{", "").replace("}", "")
                for headers in ({}, {"x-forwarded-for": "127.0.0.1"}, {"host": "localhost"}):
                    answer = await tcp.request(method, filled, headers=headers, content=b"{}")
                    assert answer.status_code == 401, (method, path, headers)
                answer = await local.request(method, filled, content=b"{}")
                assert answer.status_code not in {401, 403}, (method, path)
                checked += 1
        assert checked > 15
        for headers in FOREIGN:
            assert (await local.get("/operator/v1/fleet", headers=headers)).status_code == 403


def socket_client(gateway: InProcessGateway) -> httpx.AsyncClient:
    """Return a client of a gateway's operator socket."""
    (path,) = operator_sockets(gateway.port, os.environ)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    return httpx.AsyncClient(base_url="http://localhost", transport=transport)


NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen all
  bind 127.0.0.1:{port}
  server gateway {address}
"""


@contextlib.asynccontextmanager
async def proxy(program: str, folder: Path, url: str) -> AsyncIterator[str]:
    """Run a reverse proxy that adds no headers, in front of a URL."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    port = free_port()
    text = {"nginx": NGINX, "haproxy": HAPROXY}[program]
    config = folder / f"{program}.conf"
    config.write_text(
        text.format(folder=folder, port=port, url=url, address=url.removeprefix("http://"))
    )
    arguments = {"nginx": ["-c", str(config)], "haproxy": ["-f", str(config)]}[program]
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(30):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await http.get(f"http://127.0.0.1:{port}/health")
                    break
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
async def test_a_proxy_without_headers_opens_no_operations(tmp_path: Path, program: str):
    """Its clients have addresses of this host, which prove nothing."""
    async with (
        running_gateway() as gateway,
        proxy(program, tmp_path, gateway.url) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/health")).status_code == 200
        for path in ("/operator/v1/fleet", "/operator/v1/keys", "/operator/v1/config"):
            assert (await http.get(path)).status_code == 401
        created = await http.post("/operator/v1/keys", json={"name": "mallory"})
        assert created.status_code == 401


PAGE = """<script>
const post = {{method: "POST", mode: "no-cors", body: JSON.stringify({body})}};
const attempts = [
  fetch("{gateway}/v1/chat/completions", post),
  fetch("{gateway}/v1/models", {{mode: "no-cors"}}),
  fetch("{neuron}/models/load", {{...post, body: '{{"model_id": "x", "harness": "x", "args": ["evil"]}}'}}),
  fetch("{gateway}/operator/v1/keys", {{...post, body: '{{"name": "mallory"}}'}}),
  new Promise(done => {{
    const socket = new WebSocket("{gateway}/v1/responses".replace("http", "ws"));
    socket.onopen = () => {{ document.title = "opened"; done(); }};
    socket.onerror = socket.onclose = done;
  }}),
];
Promise.allSettled(attempts).then(() => document.title = document.title || "done");
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
async def test_a_hostile_page_in_a_browser_on_this_host_gets_nothing(tmp_path: Path):
    """Neither across origins nor under a name that was bound to this host, at a gateway and a neuron without keys."""

    async def evil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = PAGE.format(body=BODY, gateway=gateway.url, neuron=node.url).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(page) + page)
        await writer.drain()

    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as scripted,
        neuron(tmp_path) as node,
        running_gateway(neurons={"n": scripted.url}) as gateway,
        serving(evil) as evil_url,
        browser(tmp_path, "--host-resolver-rules=MAP evil.test 127.0.0.1") as tab,
    ):
        async with asyncio.timeout(20):
            while not gateway.gateway.fleet.ready("m"):
                await asyncio.sleep(0.01)
        await tab.ask("Page.navigate", url=evil_url.replace("127.0.0.1", "evil.test"))
        await tab.until_true("['done', 'opened'].includes(document.title)")
        assert await evaluate(tab, "document.title") == "done"
        await tab.ask("Page.navigate", url=f"http://evil.test:{gateway.port}/health")
        rebound = "fetch('/v1/chat/completions', {method: 'POST', body: '{}'}).then(r => r.status)"
        assert await evaluate(tab, rebound) == 403
        await tab.ask("Page.navigate", url=f"http://evil.test:{node.port}/discovery")
        assert await evaluate(tab, "fetch('/discovery').then(r => r.status)") == 403
        assert engine.calls == []
        assert gateway.gateway.key_service.keys() == ()
        assert node.runtime.instances.snapshots == []


async def evaluate(tab: Tab, script: str) -> object:
    """Return the value of a JavaScript expression, or of its promise."""
    found = await tab.ask(
        "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
    )
    return found["result"].get("value")
