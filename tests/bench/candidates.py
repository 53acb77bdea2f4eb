"""The gateways to compare, each started as users would start it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cortex" / "bench"
"""Directory of other gateways, each in its own virtual environment: <CACHE>/<name>/bin."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started gateway.

    Attributes:
        pids: processes of the gateway, whose CPU time is measured.
        relay_pids: processes of a neuron that relays between the gateway and the engine.
        strict: whether responses must equal the backend's bytes; otherwise events are only counted.
    """

    port: int
    pids: tuple[int, ...]
    relay_pids: tuple[int, ...] = ()
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Candidate:
    """One gateway, with functions to start it and to get its version."""

    name: str
    start: Callable[[int, Path, str], contextlib.AbstractContextManager[Running]]
    version: Callable[[], str | None]
    scenarios: frozenset[str] | None = field(default=None)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    """Wait until a process listens on a port.

    Raises:
        RuntimeError: the process exited, or took too long.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen")


@contextlib.contextmanager
def process(
    argv: list[str], port: int, log: Path, cpus: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process pinned to CPUs, in its own process group, which is stopped at the end of the block."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            ["taskset", "-c", cpus, *argv],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (env or {}),
        )
        try:
            wait_port(port, started)
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


@contextlib.contextmanager
def direct(backend: int, _work: Path, _cpus: str) -> Iterator[Running]:
    """Use no gateway, to measure the benchmark programs themselves."""
    yield Running(backend, ())


@contextlib.contextmanager
def cortex(backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run the real `cortex serve gateway` with its defaults: 20 models, 8 instances of one, direct engine access."""
    neuron = free_port()
    node = [sys.executable, "-m", "tests.bench.neuron", str(neuron), f"http://127.0.0.1:{backend}"]
    with (
        process(node, neuron, work / "neuron.log", "0"),
        _gateway(neuron, "", work, cpus) as (port, gateway),
    ):
        time.sleep(1.0)  # until the first status of the node
        yield Running(port, (gateway,))


@contextlib.contextmanager
def cortex_relayed(_backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run a real gateway and a real neuron whose engine listens on loopback: each request passes through both.

    The engine is the mock backend, started by the neuron. Gateway and neuron share the gateway's CPUs.
    """
    neuron = free_port()
    first = free_port()
    # A neuron that does not listen on loopback relays to its engines.
    (work / "neuron.toml").write_text(
        f'[neuron]\nlisten = "0.0.0.0:{neuron}"\nstate_dir = "{work}/neuron"\n'
        "[cpu]\noffer = true\n"
        f'[[harnesses]]\nname = "mock"\nkind = "command"\nport_range = [{first}, {min(first + 50, 65535)}]\n'
        f'command = ["taskset", "-c", "0", "{CACHE / "mock"}", "-p", "{{port}}"]\n'
    )
    models = '[[models]]\nid = "mock"\nharness = "mock"\nvram_mb = 16\nparallel = 4096\n'
    node = [_command(), "serve", "neuron", "--config", str(work / "neuron.toml")]
    with (
        process(node, neuron, work / "relay.log", cpus) as relay,
        _gateway(neuron, models, work, cpus) as (port, gateway),
    ):
        _wait_loaded(port)
        yield Running(port, (gateway,), relay_pids=(relay.pid,))


def _command() -> str:
    return str(Path(sys.executable).with_name("cortex"))


@contextlib.contextmanager
def _gateway(neuron: int, models: str, work: Path, cpus: str) -> Iterator[tuple[int, int]]:
    """Run a gateway with one node on a loopback port; yields its port and pid."""
    port = free_port()
    config = work / "cortex.toml"
    config.write_text(
        f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:{free_port()}"\n'
        f'[[neurons]]\nname = "bench"\nendpoint = "http://127.0.0.1:{neuron}"\n'
    )
    (work / "models.toml").write_text(models)
    argv = [_command(), "serve", "gateway", "--config", str(config)]
    with process(argv, port, work / "cortex.log", cpus) as gateway:
        yield port, gateway.pid


def _wait_loaded(port: int) -> None:
    """Load the model `mock` by sending requests until one succeeds.

    Raises:
        RuntimeError: no request succeeded within a minute.
    """
    body = b'{"model":"mock","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30):
            return
        time.sleep(0.2)
    raise RuntimeError("the model was not loaded within a minute")


def _children(pid: int) -> tuple[int, ...]:
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@contextlib.contextmanager
def nginx(backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run nginx without buffering and with persistent connections to the backend, one worker."""
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;
        events {{ worker_connections 8192; }}
        http {{ access_log off; keepalive_requests 1000000;
          client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/f;
          uwsgi_temp_path {work}/u; scgi_temp_path {work}/s; client_body_buffer_size 1m;
          upstream backend {{ server 127.0.0.1:{backend}; keepalive 1024; keepalive_requests 1000000; }}
          server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://backend;
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}"""
    )
    with process(
        ["nginx", "-c", str(config), "-p", str(work)], port, work / "nginx.log", cpus
    ) as run:
        yield Running(port, (run.pid, *_children(run.pid)))


def _tool(name: str, program: str) -> str | None:
    installed = CACHE / name / "bin" / program
    return str(installed) if installed.exists() else shutil.which(program)


@contextlib.contextmanager
def router(name: str, backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run one of the Rust routers that are published as Python packages, with its defaults."""
    port = free_port()
    programs = {"smg": ("bin/smg", "launch"), "vllm-router": ("bin/vllm-router",)}
    program, *verb = programs[name]
    argv = [str(CACHE / name / program), *verb, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--worker-urls", f"http://127.0.0.1:{backend}", "--policy", "round_robin"]
    argv += ["--prometheus-port", str(free_port()), "--log-level", "error"]
    argv += ["--backend", "openai"] if name == "smg" else []
    with process(argv, port, work / f"{name}.log", cpus) as run:
        time.sleep(3.0)  # the router probes its workers before it routes to them
        yield Running(port, (run.pid, *_children(run.pid)))


@contextlib.contextmanager
def litellm(backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run the LiteLLM proxy with one worker. It re-serializes responses, so their bytes can't be compared."""
    port = free_port()
    config = work / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: mock\n    litellm_params:\n      model: openai/mock\n"
        f"      api_base: http://127.0.0.1:{backend}/v1\n      api_key: none\n"
    )
    program = _tool("litellm", "litellm") or "litellm"
    argv = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    keyless = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    with process(argv, port, work / "litellm.log", cpus, keyless) as run:
        time.sleep(5.0)  # it listens before it is ready
        yield Running(port, (run.pid,), strict=False)


@contextlib.contextmanager
def go_proxy(backend: int, work: Path, cpus: str) -> Iterator[Running]:
    """Run a plain reverse proxy from Go's standard library."""
    port = free_port()
    binary = work / "goproxy"
    source = Path(__file__).with_name("goproxy.go")
    subprocess.run(["go", "build", "-o", str(binary), str(source)], check=True)
    argv = [str(binary), f"127.0.0.1:{port}", f"http://127.0.0.1:{backend}"]
    with process(argv, port, work / "go.log", cpus, {"GOMAXPROCS": "1"}) as run:
        yield Running(port, (run.pid,))


def _first_line(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None


def _package(name: str) -> str | None:
    python = CACHE / name / "bin" / "python"
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return _first_line([str(python), "-c", code])


def _package_here() -> str:
    from cortex_common import __version__

    return __version__


CANDIDATES = (
    Candidate("direct", direct, lambda: ""),
    Candidate("cortex", cortex, _package_here),
    Candidate("cortex-relayed", cortex_relayed, _package_here),
    Candidate("nginx", nginx, lambda: _first_line(["nginx", "-v"])),
    Candidate("go-proxy", go_proxy, lambda: _first_line(["go", "version"])),
    Candidate("smg", lambda b, w, c: router("smg", b, w, c), lambda: _package("smg")),
    Candidate(
        "vllm-router",
        lambda b, w, c: router("vllm-router", b, w, c),
        lambda: _package("vllm-router"),
    ),
    Candidate("litellm", litellm, lambda: _package("litellm"), frozenset({"ns32", "ns256", "s50"})),
)
