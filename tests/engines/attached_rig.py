"""A fake mistral.rs server with a fake systemd unit, and a neuron attached to it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

from engines.neuron_rig import FAKE_ENGINE, NeuronRig, wait_for

FAKE_MISTRALRS = FAKE_ENGINE.with_name("fake_mistralrs.py")


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Attached:
    """A fake server with two models, a fake systemctl that restarts it, and a neuron attached to it."""

    def __init__(
        self, directory: Path, *, refuse: str = "", loses: bool = False, unit: bool = True
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.pid_file = directory / "engine.pid"
        self.hold = directory / "hold"  # reloads wait while it exists
        option = " --loses" if loses else ""
        start = shlex.join([sys.executable, str(FAKE_MISTRALRS)])
        start += f" attach --models org/a,org/b --refuse={refuse} --host 127.0.0.1"
        start += (
            f" -p {self.port} --load-s 0.2 --hold {self.hold} --pid-file {self.pid_file}{option}"
        )
        bin_dir = directory / "bin"
        bin_dir.mkdir()
        self.calls = directory / "systemctl.calls"
        restart = f"[ -f {self.pid_file} ] && kill -9 $(cat {self.pid_file}) 2>/dev/null\n{start} >/dev/null 2>&1 &"
        script(bin_dir / "systemctl", f'echo "$@" >> {self.calls}\n{restart}')
        self.url = f"http://127.0.0.1:{self.port}"
        self.systemctl = bin_dir / "systemctl"
        self.rig = NeuronRig(directory / "neuron")
        section = f'[[harnesses]]\nname = "shared"\nkind = "attach"\nurl = "{self.url}"\n'
        section += "load_timeout_s = 10.0\nhealth_interval_s = 0.3\n"
        section += 'unit = "mistralrs.service"\n' if unit else ""
        self.rig.config.write_text(self.rig.config.read_text() + section)
        os.environ["PATH"], self.path = f"{bin_dir}:{os.environ['PATH']}", os.environ["PATH"]

    def start_engine(self) -> None:
        """Start the engine, as an operator does before the neuron."""
        subprocess.run([self.systemctl, "start", "it"], check=True)
        wait_for(self.listens, 60)

    def listens(self) -> bool:
        """Return whether the engine listens."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """Stop the neuron, then the engine."""
        self.rig.close()
        os.environ["PATH"] = self.path
        if self.pid_file.exists():
            os.kill(int(self.pid_file.read_text()), signal.SIGKILL)
            wait_for(lambda: not self.listens(), 60)
