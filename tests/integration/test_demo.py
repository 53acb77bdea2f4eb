from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from demo_fleet import DemoFleet, cortex, demo_fleet, descendants, environment, free_port

from cortex_cli.demo.files import Ports, choose_ports, write_files
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    """Return a port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def fleet(taken_port: int) -> Iterator[DemoFleet]:
    """Run one demo for tests that do not change it, on a port that is in use."""
    with demo_fleet("--port", str(taken_port)) as running:
        yield running


def run_line(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, as if it were pasted."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        env=environment(PATH=path) | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_once_proves_the_chain(tmp_path: Path):
    """`cortex demo --once` streams a response of the real engine, exits with 0 and cleans up.

    With `--model FILE.gguf` the answer is that file's, under its own name.
    """
    own = write_tiny_gguf(tmp_path / "my-own.gguf")
    options = ["--once", "--model", str(own), "--port", str(free_port())]
    with subprocess.Popen(
        [sys.executable, "-m", "cortex_cli", "demo", *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        answer = process.stdout.readline()
        children = descendants(psutil.Process(process.pid))
        # Not communicate(): it knows nothing of what readline() has read ahead.
        assert process.stderr
        output, messages = process.stdout.read(), process.stderr.read()
        process.wait(90)

    assert process.returncode == 0, messages
    assert len(answer.split()) > 3
    assert len(output.strip().splitlines()) == 5
    assert "my-own is ready" in output
    assert len(children) >= 2
    assert not [p for p in children if p.is_running()]


def test_the_curl_line_works_as_pasted(fleet: DemoFleet):
    """The curl line of the summary streams chunks."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = run_line(fleet.lines["curl"])

    assert done.returncode == 0
    assert done.stdout.count("data: {") > 3
    assert done.stdout.rstrip().endswith("data: [DONE]")


def test_the_python_line_works_as_pasted(fleet: DemoFleet):
    """The Python line of the summary prints a response through the official SDK."""
    done = run_line(fleet.lines["python"])

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_two_of_three_models_fit(fleet: DemoFleet):
    """Requests for all three models in turn succeed, and at most two models are loaded at a time."""
    for model in ("demo/ada", "demo/bob", "demo/cleo", "demo/ada"):
        done = fleet.cortex("chat", model, "hello", "--max-tokens", "8")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        loaded = fleet.cortex("ps", "-q").stdout.split()
        assert model in loaded
        assert len(loaded) <= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals):
    """SIGINT and SIGHUP stop every daemon and engine and remove the files; for SIGTERM see `demo_fleet`."""
    with demo_fleet("--port", str(free_port())) as running:
        directory = running.directory
        children = descendants(psutil.Process(running.demo.pid))
        engines = [p for p in children if "neuron_server" in " ".join(p.cmdline())]

        assert running.stop(number) == 0
        assert engines
        assert not [p for p in children if p.is_running()]
        assert not directory.exists()


def test_an_engine_whose_neuron_was_killed_is_ended_too():
    """If the neuron is killed, the demo exits with 1, says why, keeps the logs, and stops the engines."""
    with demo_fleet("--port", str(free_port())) as running:
        children = descendants(psutil.Process(running.demo.pid))
        neuron = next(p for p in children if "neuron.toml" in " ".join(p.cmdline()))
        neuron.kill()

        assert running.demo.wait(60) == 1
        psutil.wait_procs(children, timeout=10)
        assert not [p for p in children if p.is_running()]
        directory = running.directory
        assert (directory / "neuron.log").exists()
        shutil.rmtree(directory)
    assert "the neuron exited unexpectedly" in "".join(running.messages)


def test_a_taken_port_is_replaced_and_reported(fleet: DemoFleet, taken_port: int):
    """If the gateway's port is in use, the demo uses a free one and says so."""
    assert fleet.url != f"http://127.0.0.1:{taken_port}"
    assert fleet.cortex("status", "-o", "name").stdout == "ok\n"
    assert f"port {taken_port} is in use; the gateway uses" in "".join(fleet.messages)


def test_all_ports_differ():
    """Replacements of ports that are in use are distinct."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports, messages = choose_ports(Ports(port, port, port))

    assert len({ports.api, ports.metrics, ports.neuron, port}) == 4
    assert len(messages) == 3


def test_the_files_are_valid(tmp_path: Path):
    """The demo's configuration passes `cortex config check`."""
    files = write_files(tmp_path, Ports(), [], 100)
    done = cortex("config", "check", str(files.gateway), str(files.models), str(files.neuron))

    assert done.returncode == 0, done.stderr
