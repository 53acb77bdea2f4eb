"""A host with the packages installed: they are unpacked and mounted over this host's /usr and /etc in namespaces.

Programs, units and paths are those of the packages. The network namespace is private, so all ports are free.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ENTER = r"""
set -e
mount -t overlay packages -o lowerdir={root}/usr:/usr /usr
mount -t overlay packages -o lowerdir={root}/etc:/etc /etc
mount --bind {state} /var/lib
ip link set lo up
echo ready
exec sleep infinity
"""


class Installed:
    """A host with the packages installed.

    Args:
        root: directory with the unpacked packages.
        state: directory to mount as /var/lib.
    """

    def __init__(self, root: Path, state: Path) -> None:
        self.root = root
        unshare = ["unshare", "--mount", "--net"]
        if os.geteuid() != 0:
            unshare.append("--map-root-user")
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-c", _ENTER.format(root=root, state=state)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "can't create namespaces"

    def _inside(self, *argv: str) -> list[str]:
        enter = ["nsenter", "--target", str(self._holder.pid), "--mount", "--net"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        return [*enter, *argv]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the host."""
        done = subprocess.run(
            self._inside(*argv),
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def python(self, script: str, *arguments: str) -> str:
        """Run a script with the tests' own interpreter on the host, and return its output."""
        return self.run(sys.executable, "-c", script, *arguments).stdout

    @contextmanager
    def service(self, unit: str, **environ: str) -> Iterator[Service]:
        """Start the ExecStart command of a unit as systemd would, wait until it is ready, and stop it at the end."""
        service = Service(self, unit, environ)
        try:
            service.wait_for("READY=1")
            yield service
        finally:
            service.stop()

    def close(self) -> None:
        """Stop all processes on the host."""
        self._holder.kill()
        self._holder.communicate()

    def spawn(self, command: str, environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command line on the host."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self._inside(*shlex.split(command)), env=environ, stdout=output, stderr=output
            )


class Service:
    """The main process of a unit, and the states that it sends to the service manager."""

    def __init__(self, host: Installed, unit: str, environ: dict[str, str]) -> None:
        text = (host.root / "usr/lib/systemd/system" / unit).read_text(encoding="utf-8")
        (command,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
        self.log = host.root.parent / f"{unit}.log"
        address = host.root.parent / f"{unit}.notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._states: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Read continuously like systemd, because senders block while ten messages are unread.
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        name = unit.removesuffix(".service")
        self._process = host.spawn(
            command,
            {
                "PATH": "/usr/sbin:/usr/bin",
                "LANG": "C.UTF-8",
                "NOTIFY_SOCKET": str(address),
                "WATCHDOG_USEC": "1000000",
                "STATE_DIRECTORY": f"/var/lib/cortex/{'gateway' if name == 'cortex' else name}",
                **environ,
            },
            self.log,
        )

    def wait_for(self, state: str) -> None:
        """Wait until the process has sent a state."""
        try:
            while self._states.get(timeout=60) != state:
                pass
        except queue.Empty:
            raise AssertionError(f"no {state}: {self.log.read_text(encoding='utf-8')}") from None

    def stop(self) -> int:
        """Stop only the main process, as KillMode=process and KillMode=mixed do, and return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(60)
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._socket.close()
        return status

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            for state in message.decode().splitlines():
                self._states.put(state)
