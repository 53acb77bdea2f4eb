"""A real fleet for tests: a `cortex demo` process with a neuron, a gateway and the embedded engine."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import psutil
from rigs import forkserver

from cortex_cli.main import main


def environment(**more: str) -> dict[str, str]:
    """Return the environment without variables that select a gateway or change a setting."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "OPENAI_"))}
    return clean | {"NO_COLOR": "1", "HOME": "/nonexistent"} | more


def cortex(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process and wait for its exit."""
    return forkserver.run(args, stdin=stdin, environ=environment(**env))


def cortex_here(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: the same code without the start of an interpreter."""
    out, err = io.StringIO(), io.StringIO()
    environ, own_stdin = dict(os.environ), sys.stdin
    clean = environment(**env)
    code: object = 0
    try:
        os.environ.clear()
        os.environ.update(clean)
        sys.stdin = io.StringIO(stdin)
        with redirect_stdout(out), redirect_stderr(err):
            main(args)
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdin = own_stdin
        os.environ.clear()
        os.environ.update(environ)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return the current descendants of a process."""
    return process.children(recursive=True)


@dataclass(frozen=True)
class DemoFleet:
    """A running demo.

    Attributes:
        lines: its summary lines, by their first word.
        messages: lines that it has written to stderr.
    """

    demo: subprocess.Popen[str]
    lines: dict[str, str]
    messages: list[str]

    @property
    def url(self) -> str:
        """URL of the gateway."""
        found = re.search(r"gateway (http://\S+?),", self.lines["running"])
        assert found
        return found[1]

    @property
    def directory(self) -> Path:
        """Directory of its files and logs."""
        return Path(self.lines["running"].rsplit("logs ", 1)[1])

    def cortex(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command against its gateway, in this process."""
        return cortex_here(*args, stdin=stdin, CORTEX_GATEWAY_URL=self.url, **env)

    def process(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command against its gateway, in its own process."""
        return cortex(*args, CORTEX_GATEWAY_URL=self.url)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the demo and return its exit code."""
        self.demo.send_signal(number)
        return self.demo.wait(60)


@contextmanager
def demo_fleet(*options: str) -> Iterator[DemoFleet]:
    """Run a demo until the block ends; check that SIGTERM stops all of its processes and removes its files."""
    with subprocess.Popen(
        [sys.executable, "-m", "cortex_cli", "demo", "--no-view", *options],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        messages: list[str] = []
        reader = threading.Thread(target=messages.extend, args=(process.stderr,))
        reader.start()
        lines: dict[str, str] = {}
        try:
            for line in process.stdout:
                word, _, rest = line.partition(":")
                lines[word] = rest.strip()
                if word == "operate":
                    break
            assert "operate" in lines, "".join(messages)
            fleet = DemoFleet(process, lines, messages)
            yield fleet
        finally:
            running = process.poll() is None
            children = descendants(psutil.Process(process.pid)) if running else []
            process.terminate()
            process.wait(60)
            reader.join()
        if running:
            assert process.returncode == 0, "".join(messages)
            assert not [p for p in children if p.is_running()]
            assert not fleet.directory.exists()
