"""A running gateway applies new settings, and shuts down gracefully."""

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
from rigs.proxy import read_cut_stream

from cortex_common.client.operator_transport import operator_transport
from cortex_common.errors import ConfigError
from cortex_server.auth.keys import hash_of

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
MODEL = '[[models]]\nid = "m"\nharness = "scripted"\n'


def key_table(name: str, *lines: str) -> str:
    """Return a [[keys]] entry whose secret is its name."""
    return "\n".join([f'[[keys]]\nname = "{name}"\nhash = "{hash_of(name)}"', *lines, ""])


class PausedStream:
    """An engine that sends half of a stream immediately, and the rest once `resume` is set."""

    def __init__(self) -> None:
        self.resume = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Respond to one request."""
        await call.send(SSE_HEAD + chunked(CHUNK % b"half"))
        await self.resume.wait()
        await call.send(chunked(LAST, DONE) + b"0\r\n\r\n")


async def test_a_reload_interrupts_no_stream(tmp_path):
    """A hundred streams complete although neurons, keys, limits and aliases are replaced meanwhile."""
    paused = PausedStream()
    async with (
        scripted_engine(paused) as engine,
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
        reloaded = await gateway.wait_for_event("config_reloaded")
        assert set(reloaded["changed"].split(", ")) == {"limits", "keys", "neurons", "models"}
        paused.resume.set()
        answers = await asyncio.gather(*streams)
        assert {a.content for a in answers} == {CHUNK % b"half" + LAST + DONE}
        rejected = await http.post(CHAT, json=BODY | {"model": "nick"})
        assert rejected.status_code == 401
        body = BODY | {"model": "nick"}
        answer = await http.post(CHAT, json=body, headers={"x-api-key": "k"})
        assert answer.status_code == 200
        await gateway.until(
            lambda s: {n.name for n in s.nodes if n.state == "up"} == {"one", "two"}
        )


async def test_an_invalid_file_changes_nothing(tmp_path):
    """The error names file, line and key; the gateway continues, and applies the fixed file."""
    async with (
        gateway_process(tmp_path, models=MODEL) as gateway,
        gateway.operator() as operator,
    ):
        for invalid in ("[limits]\nmax_in_flght = 1\n", "[[", '[[neurons]]\nname = "a"\n'):
            gateway.write(invalid, key_table("k"))
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


async def test_a_rejected_file_is_visible_until_it_is_fixed(tmp_path):
    """The fleet snapshot has the reason, and the two metrics have the names that Prometheus's own server uses."""

    async def scrape(url: str) -> dict[str, float]:
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
        before = await scrape(metrics)
        gateway.write("[limits]\nmax_in_flght = 1\n")
        with pytest.raises(ConfigError):
            await operator.reload()
        settings = (await operator.fleet()).settings
        assert "limits.max_in_flght" in (settings.reload_error or "")
        rejected = await scrape(metrics)
        gateway.write(models=MODEL)
        await operator.reload()
        assert (await operator.fleet()).settings.reload_error is None
        fixed = await scrape(metrics)

    at = "success_timestamp_seconds"
    assert [t["successful"] for t in (before, rejected, fixed)] == [1, 0, 1]
    assert before[at] == rejected[at] == settings.read_at < fixed[at]


async def test_a_changed_file_is_reloaded_automatically(tmp_path):
    """A change of models.toml is applied without a command."""
    async with gateway_process(tmp_path, models=MODEL) as gateway:
        gateway.write(models=MODEL.replace('"m"', '"other"'))
        await gateway.until(lambda s: [m.id for m in s.models] == ["other"])


async def test_settings_that_need_a_restart_are_reported(tmp_path):
    """A changed address is reported as a setting that takes effect after a restart."""
    async with gateway_process(tmp_path) as gateway, gateway.operator() as operator:
        gateway.port, old = free_port(), gateway.port
        gateway.write(gateway="max_body_mb = 1\n")
        gateway.port = old
        await operator.reload()
        reloaded = await gateway.wait_for_event("config_reloaded")
        if reloaded["changed"] == "nothing":  # the gateway had reloaded the file automatically
            reloaded = json.loads(
                next(x for x in gateway.log.splitlines() if '"config_reloaded"' in x)
            )
        assert set(reloaded["changed"].split(", ")) == {"gateway.listen", "gateway.max_body_mb"}
        assert reloaded["restart"] == "gateway.listen"
        assert (await operator.fleet()).settings.restart == ("gateway.listen",)
        big = json.dumps(BODY | {"x": "y" * (1 << 20)})
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            assert (await http.post(CHAT, content=big)).status_code == 413


async def test_a_node_that_is_removed_is_forgotten(tmp_path):
    """Its watcher ends, and its models are no longer served."""
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


async def test_a_key_is_rotated_under_load_without_a_rejection(tmp_path):
    """Requests with the old key and then the new one all succeed while the file is changed."""
    async with (
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url), key_table("old")) as gateway,
        gateway.operator() as operator,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        secret, statuses, done = "old", [], False

        async def send_requests() -> None:
            while not done:
                answer = await http.post(CHAT, json=BODY, headers={"x-api-key": secret})
                statuses.append(answer.status_code)

        senders = [asyncio.create_task(send_requests()) for _ in range(8)]
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
        done = True
        await asyncio.gather(*senders)
        assert set(statuses) == {200}
        old = await http.post(CHAT, json=BODY, headers={"x-api-key": "old"})
        assert old.status_code == 401


async def test_sigterm_drains_streams_and_rejects_new_requests(tmp_path):
    """Meanwhile new requests get 503 with Retry-After, and /ready fails; then the process exits with 0."""
    paused = PausedStream()
    async with (
        scripted_engine(paused) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(tmp_path, neuron_table("n", neuron.url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        streams = [asyncio.create_task(http.post(CHAT, json=BODY)) for _ in range(20)]
        await engine.call(19)
        gateway.signal(signal.SIGTERM)
        await gateway.wait_for_event("gateway_draining")
        refused = await http.post(CHAT, json=BODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await http.get("/ready")).status_code == 503
        assert (await http.get("/health")).status_code == 200
        paused.resume.set()
        answers = await asyncio.gather(*streams)
        assert {a.content for a in answers} == {CHUNK % b"half" + LAST + DONE}
        assert await gateway.wait_exit() == 0


async def test_a_drain_that_times_out_ends_streams_with_an_error(tmp_path):
    """A stream that takes longer than drain_timeout_s ends with an error event, not as if it were complete."""
    async with (
        scripted_engine(PausedStream()) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(
            tmp_path, neuron_table("n", neuron.url), gateway="drain_timeout_s = 0.3\n"
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        await gateway.until(lambda s: any(n.instances for n in s.nodes))
        async with http.stream("POST", CHAT, json=BODY) as stream:
            await engine.call(0)
            gateway.signal(signal.SIGTERM)
            content = await read_cut_stream(stream.aiter_bytes())
        assert content.startswith(CHUNK % b"half")
        assert b'"code":"unavailable"' in content
        assert await gateway.wait_exit() == 0


async def test_two_simultaneous_signals_stop_the_gateway(tmp_path):
    """A wrapper can forward a signal that its process group received too; it arrives before the drain starts."""
    async with gateway_process(tmp_path) as gateway:
        gateway.signal(signal.SIGSTOP)
        gateway.signal(signal.SIGTERM)
        gateway.signal(signal.SIGINT)  # two signals of the same number would be merged
        gateway.signal(signal.SIGCONT)
        assert await gateway.wait_exit() == 0


async def test_an_open_event_stream_does_not_delay_the_shutdown(tmp_path):
    """The stream ends, then the process."""
    async with (
        gateway_process(tmp_path) as gateway,
        httpx.AsyncClient(
            base_url=gateway.url, timeout=30, transport=operator_transport(gateway.url)
        ) as http,
        http.stream("GET", "/operator/v1/events") as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        async for _ in lines:
            pass
        assert await gateway.wait_exit() == 0
        assert time.monotonic() - began < 5


async def test_systemd_is_notified_of_start_watchdog_and_stop(tmp_path):
    """READY=1 once it listens, WATCHDOG=1 periodically, STOPPING=1 at the end with the time that the drain can take."""
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
        async with gateway_process(tmp_path, environ=environ) as gateway, asyncio.timeout(20):
            messages: list[bytes] = []

            async def until(message: bytes, times: int = 1) -> None:
                while messages.count(message) < times:
                    messages.append(await loop.sock_recv(sock, 1024))

            await until(b"READY=1")
            await until(b"WATCHDOG=1", 3)
            gateway.signal(signal.SIGTERM)
            await until(b"STOPPING=1")
            await until(b"EXTEND_TIMEOUT_USEC=75000000")
            assert await gateway.wait_exit() == 0


async def test_a_socket_from_systemd_is_used(tmp_path):
    """With LISTEN_FDS the gateway serves the socket that it inherited, and its successor uses the same one."""
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
            with subprocess.Popen(  # noqa: ASYNC220 - starts immediately; its exit is awaited in a thread
                command,
                pass_fds=[sock.fileno()],
                env={k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
                stderr=subprocess.DEVNULL,
            ) as process:
                async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                    # The kernel accepts the connection before the gateway runs, which then responds.
                    assert (await http.get("/health")).status_code == 200
                process.terminate()
                assert await asyncio.to_thread(process.wait, 20) == 0
