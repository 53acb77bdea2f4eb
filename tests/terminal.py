"""Commands on a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from demo_fleet import environment


class Terminal:
    """Output of a command on its terminal.

    Args:
        descriptor: our end of it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = bytearray()
        self._passed = 0
        self._more = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def until(self, words: str, seconds: float = 30.0) -> str:
        """Wait for these words and return the output since the last call up to them."""
        wanted = words.encode()
        with self._more:
            came = self._more.wait_for(
                lambda: wanted in self._written[self._passed :], timeout=seconds
            )
            rest = bytes(self._written[self._passed :])
            assert came, f"{words!r} is not in {rest[-2000:]!r}"
            end = rest.index(wanted) + len(wanted)
            self._passed += end
        return rest[:end].decode(errors="replace")

    def press(self, keys: str) -> None:
        """Type keys."""
        os.write(self._descriptor, keys.encode())

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._descriptor, 65536)
            except OSError:  # the command has ended
                return
            with self._more:
                self._written += piece
                self._more.notify_all()


@contextmanager
def on_terminal(
    *args: str, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Run a command on its own terminal of 120x30."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    command = [sys.executable, "-m", "cortex_cli", *args]
    env = environment(TERM="xterm-256color", **(environ or {}))
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        terminal = Terminal(ours)
        try:
            yield process, terminal
        finally:
            process.kill()
    terminal.reader.join()
    os.close(ours)
