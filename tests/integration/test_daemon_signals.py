"""How the daemons end: repeated ctrl-c, and a terminal that is closed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from demo_fleet import environment
from engines.neuron_rig import wait_for
from rigs.forkserver import CortexProcess


def settings(directory: Path) -> dict[str, str]:
    """Return the environment of a daemon on free ports that keeps its state in a directory."""
    return environment(
        CORTEX_GATEWAY__LISTEN="127.0.0.1:0",
        CORTEX_GATEWAY__METRICS_LISTEN="127.0.0.1:0",
        CORTEX_GATEWAY__STATE_DIR=str(directory),
        CORTEX_NEURON__LISTEN="127.0.0.1:0",
        CORTEX_NEURON__STATE_DIR=str(directory),
    )


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_pressing_ctrl_c_twice_ends_a_daemon_cleanly(daemon: str, tmp_path: Path):
    """The second SIGINT skips the drain; the daemon logs that it has stopped, without a traceback, and exits with 0."""
    log = tmp_path / "log"
    log.write_text("")
    process = CortexProcess(
        ["serve", daemon, "--log-format", "console"], log, environ=settings(tmp_path)
    )
    wait_for(lambda: f"{daemon}_listening" in log.read_text(), 30.0, log.read_text)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert f"{daemon}_stopped" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_closing_the_terminal_ends_a_daemon(daemon: str, tmp_path: Path):
    """SIGHUP of a closed terminal stops a daemon in the foreground instead of reloading it, or killing it midway."""
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "cortex_cli", "serve", daemon, "--log-format", "console"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["setsid", "--ctty", *command], env=settings(tmp_path), stdin=theirs, stderr=stream
        )
    os.close(theirs)
    try:
        wait_for(lambda: f"{daemon}_listening" in log.read_text(), 30.0, log.read_text)
        os.close(ours)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert f"{daemon}_stopped" in log.read_text()
