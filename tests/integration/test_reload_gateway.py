"""A running gateway takes new settings over, and ends in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rigs.engine import CHUNK, DONE, LAST, SSE_HEAD, Call, chunked, scripted_engine
from rigs.fleet import free_port
from rigs.gateway import gateway_process, neuron_table
from rigs.neuron import scripted_neuron

from cortex_common.errors import ConfigError
from cortex_server.auth.keys import hash_of

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
MODEL = '[[models]]\nid = "m"\nharness = "scripted"\n'


def key_table(name: str, *lines: str) -> str:
    """A [[keys]] entry whose secret is its name."""
    return "\n".join([f'[[keys]]\nname = "{name}"\nhash = "{hash_of(name)}"', *lines, ""])


class Held:
    """An engine's script: half of the answer at once, the rest when the test says so."""

    def __init__(self) -> None:
        self.rest = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        await call.send(SSE_HEAD + chunked(CHUNK % b"half"))
        await self.rest.wait()
        await call.send(chunked(LAST, DONE) + b"0\r\n\r\n")


async def test_a_reload_under_a_hundred_streams_loses_none(tmp_path):
    """Streams that began before end whole after neurons, keys, limits and aliases were replaced under them."""
    held = Held()
    async with (
        scripted_engine(held) as engine,
        scripted_neuron({"m": engine.url}) as first,
        scripted_neuron({"n": engine.url}) as second,
        gateway_process(tmp_path, neuron_table("one", first.url), models=MODEL) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        await gateway.until(lambda s: any(m.state == "ready" for m in s.models))
        streams = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(100)]
        await engine.call(99)
        gateway.write(
            neuron_table("one", first.url),
            neuron_table("two", second.url),
            "[limits]\nmax_in_flight = 200\n",
            key_table("k"),
            models=MODEL + 'aliases = ["nick"]\n',
        )
        gateway.signal(signal.SIGHUP)
        told = await gateway.logged("reloaded")
        assert set(told["changed"].split(", ")) == {"limits", "keys", "neurons", "models"}
        held.rest.set()
        answers = await asyncio.gather(*streams)
        assert {a.content for a in answers} == {CHUNK % b"half" + LAST + DONE}
        refused = await http.post(CHAT, json=BODY | {"model": "nick"})
        assert refused.status_code == 401
        asked = BODY | {"model": "nick"}
        answer = await http.post(CHAT, json=asked, headers={"x-api-key": "k"})
        assert answer.status_code == 200
        await gateway.until(
            lambda s: {n.name for n in s.nodes if n.state == "up"} == {"one", "two"}
        )


async def test_a_wrong_file_changes_nothing_and_says_why(tmp_path):
    """The operator is told file, line and key; the gateway runs on, and takes the mended file."""
    async with (
        gateway_process(tmp_path, models=MODEL) as gateway,
        gateway.operator() as operator,
    ):
        for wrong in ("[limits]\nmax_in_flght = 1\n", "[[", '[[neurons]]\nname = "a"\n'):
            gateway.write(wrong, key_table("k"))
            with pytest.raises(ConfigError) as caught:
                await operator.reload()
            assert "cortex.toml" in caught.value.message
            assert (await operator.keys()) == ()
            assert [m.id for m in (await operator.fleet()).models] == ["m"]
        gateway.write(neuron_table("a", "http://127.0.0.1:1", token_file="/nonexistent"))
        with pytest.raises(ConfigError, match="/nonexistent"):
            await operator.reload()
        assert (await operator.fleet()).nodes == ()
        gateway.write(key_table("k"), models=MODEL)
        await operator.reload()
        assert [k.name for k in await operator.keys()] == ["k"]


async def test_a_refused_file_stays_told_until_it_is_mended(tmp_path):
    """In the fleet's picture with the reason, and in the two metrics that Prometheus' own server has for it."""

    async def told(url: str) -> dict[str, float]:
        async with httpx.AsyncClient() as http:
            text = (await http.get(url)).text
        name = "cortex_config_last_reload_"
        return {
            s.name.removeprefix(name): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name.startswith(name)
        }

    async with gateway_process(tmp_path, models=MODEL) as gateway, gateway.operator() as operator:
        metrics = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
        began = await told(metrics)
        gateway.write("[limits]\nmax_in_flght = 1\n")
        with pytest.raises(ConfigError):
            await operator.reload()
        settings = (await operator.fleet()).settings
        assert "limits.max_in_flght" in (settings.refused or "")
        refused = await told(metrics)
        gateway.write(models=MODEL)
        await operator.reload()
        assert (await operator.fleet()).settings.refused is None
        mended = await told(metrics)

    at = "success_timestamp_seconds"
    assert [t["successful"] for t in (began, refused, mended)] == [1, 0, 1]
    assert began[at] == refused[at] == settings.read_at < mended[at]


async def test_a_changed_file_is_read_by_itself(tmp_path):
    """Nobody has to say that models.toml has changed."""
    async with gateway_process(tmp_path, models=MODEL) as gateway:
        gateway.write(models=MODEL.replace('"m"', '"other"'))
        await gateway.until(lambda s: [m.id for m in s.models] == ["other"])


async def test_what_needs_a_restart_is_told(tmp_path):
    """A changed address is named as what takes effect only with a restart."""
    async with gateway_process(tmp_path) as gateway, gateway.operator() as operator:
        gateway.port, old = free_port(), gateway.port
        gateway.write(gateway="max_body_mb = 1\n")
        gateway.port = old
        await operator.reload()
        told = await gateway.logged("reloaded")
        if told["changed"] == "nothing":  # the gateway had seen the new file by itself
            told = json.loads(next(x for x in gateway.log.splitlines() if '"reloaded"' in x))
        assert set(told["changed"].split(", ")) == {"gateway.listen", "gateway.max_body_mb"}
        assert told["restart"] == "gateway.listen"
        assert (await operator.fleet()).settings.restart == ("gateway.listen",)
        big = json.dumps(BODY | {"x": "y" * (1 << 20)})
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            assert (await http.post(CHAT, content=big)).status_code == 413


async def test_a_node_that_is_taken_out_is_forgotten(tmp_path):
    """Its watcher ends, its models are not offered any more."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("one", neuron.url)) as gateway,
        gateway.operator() as operator,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        assert (await http.post(CHAT, json=BODY)).status_code == 200
        gateway.write()
        await operator.reload()
        assert (await operator.fleet()).nodes == ()
        assert (await http.post(CHAT, json=BODY)).status_code == 404


async def test_a_key_is_rotated_under_load_without_a_refusal(tmp_path):
    """While requests come with the old key and then the new one, a change of files refuses neither in its time."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url), key_table("old")) as gateway,
        gateway.operator() as operator,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        secret, statuses, over = "old", [], False

        async def ask() -> None:
            while not over:
                answer = await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
                statuses.append(answer.status_code)

        askers = [asyncio.create_task(ask()) for _ in range(8)]
        tables = (neuron_table("n", neuron.url), key_table("old"), key_table("new"))
        gateway.write(*tables)
        await operator.reload()
        secret, seen = "new", len(statuses)
        async with asyncio.timeout(20):
            while len(statuses) < seen + 50:
                await asyncio.sleep(0.01)
        gateway.write(tables[0], tables[2])
        await operator.reload()
        seen = len(statuses)
        async with asyncio.timeout(20):
            while len(statuses) < seen + 50:
                await asyncio.sleep(0.01)
        over = True
        await asyncio.gather(*askers)
        assert set(statuses) == {200}
        old = await http.post(CHAT, json=BODY, headers={"x-api-key": "old"})
        assert old.status_code == 401


async def test_sigterm_lets_streams_end_and_sends_new_requests_away(tmp_path):
    """While streams end, a new request gets 503 with Retry-After and /ready says no; then the process ends with 0."""
    held = Held()
    async with (
        scripted_engine(held) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        streams = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(20)]
        await engine.call(19)
        gateway.signal(signal.SIGTERM)
        await gateway.logged("gateway_draining")
        refused = await http.post(CHAT, json=BODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await http.get("/ready")).status_code == 503
        assert (await http.get("/health")).status_code == 200
        held.rest.set()
        answers = await asyncio.gather(*streams)
        assert {a.content for a in answers} == {CHUNK % b"half" + LAST + DONE}
        assert await gateway.ended() == 0


async def test_the_drain_has_a_limit_and_says_so(tmp_path):
    """A stream that outlasts the limit ends with an error event, not with a clean-looking end."""
    async with (
        scripted_engine(Held()) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(
            tmp_path, neuron_table("n", neuron.url), gateway="drain_timeout_s = 0.3\n"
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        stream = asyncio.create_task(http.post(CHAT, json=BODY))
        await engine.call(0)
        gateway.signal(signal.SIGTERM)
        content = (await stream).content
        assert content.startswith(CHUNK % b"half")
        assert b'"code":"unavailable"' in content
        assert await gateway.ended() == 0


async def test_two_signals_at_once_end_it_too(tmp_path):
    """As when a wrapper passes on what its process group got as well; the second comes before the drain has begun."""
    async with gateway_process(tmp_path) as gateway:
        gateway.signal(signal.SIGSTOP)
        gateway.signal(signal.SIGTERM)
        gateway.signal(signal.SIGINT)  # of the same number one would be left
        gateway.signal(signal.SIGCONT)
        assert await gateway.ended() == 0


async def test_an_open_event_stream_does_not_hold_the_end(tmp_path):
    """An operator who watches is no reason to wait: the stream ends, then the process."""
    async with (
        gateway_process(tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        http.stream("GET", "/operator/v1/events") as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        async for _ in lines:
            pass
        assert await gateway.ended() == 0
        assert time.monotonic() - began < 5


async def test_systemd_hears_of_start_watchdog_and_end(tmp_path):
    """READY=1 once it listens, WATCHDOG=1 again and again, STOPPING=1 at the end and how long the drain may take."""
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
        async with gateway_process(tmp_path, environ=environ) as gateway, asyncio.timeout(20):
            heard: list[bytes] = []

            async def until(word: bytes, times: int = 1) -> None:
                while heard.count(word) < times:
                    heard.append(await loop.sock_recv(sock, 1024))

            await until(b"READY=1")
            await until(b"WATCHDOG=1", 3)
            gateway.signal(signal.SIGTERM)
            await until(b"STOPPING=1")
            await until(b"EXTEND_TIMEOUT_USEC=75000000")
            assert await gateway.ended() == 0


async def test_a_socket_that_systemd_hands_over_is_listened_on(tmp_path):
    """With LISTEN_FDS the gateway serves the socket that it was given, and a successor goes on with the same one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        (tmp_path / "cortex.toml").write_text("[gateway]\nmetrics_listen = '127.0.0.1:0'\n")
        hand_over = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}; "
            "os.execv(sys.executable, [sys.executable, '-m', 'cortex_cli', *sys.argv[2:]])"
        )
        command = [sys.executable, "-c", hand_over, str(sock.fileno())]
        command += ["serve", "gateway", "-c", str(tmp_path / "cortex.toml")]
        for _ in range(2):
            with subprocess.Popen(  # noqa: ASYNC220 - it starts at once; its end is waited for in a thread
                command,
                pass_fds=[sock.fileno()],
                env={k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
                stderr=subprocess.DEVNULL,
            ) as process:
                async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                    # Accepted by the kernel before anybody serves, answered once somebody does.
                    assert (await http.get("/health")).status_code == 200
                process.terminate()
                assert await asyncio.to_thread(process.wait, 20) == 0
