"""`cortex` processes that start quickly, because they are forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "__main__",
        "cortex_cli.main",
        "cortex_cli.client",
        "cortex_cli.commands.serve",
        "cortex_common.client.gateway",
        "cortex_server.main",
        "neuron_server.main",
        "cortex_cli.output",
        "cortex_cli.render.fleet",
        # httpx imports some of these at the first request, uvicorn others when it starts to serve.
        "anyio._backends._asyncio",
        "anyio.streams.tls",
        "httpcore",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ]
)


def environment(**more: str) -> dict[str, str]:
    """Return the current environment without variables that change settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")} | more


class CortexProcess:
    """A `cortex ARGV` process, with the part of Popen's interface that tests need.

    Args:
        argv: arguments after `cortex`.
        out: file that stdout is appended to, or a named pipe.
        err: the same for stderr; `out` by default.
        stdin: file to read from; empty by default.
        environ: environment of the process.
    """

    def __init__(
        self,
        argv: Sequence[str],
        out: Path,
        err: Path | None = None,
        *,
        stdin: Path = Path(os.devnull),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = argv
        environ = dict(environment() if environ is None else environ)
        files = (stdin, out, err or out)
        for path in files[1:]:
            path.touch()  # a test can read it immediately
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_run, args=(tuple(argv), files, environ), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Wait until it exits, and return the exit code.

        Raises:
            TimeoutExpired: it did not exit in time.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            assert seconds is not None
            raise subprocess.TimeoutExpired(self._argv, seconds)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    argv: Sequence[str], *, stdin: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `cortex ARGV` until it exits, for at most 90 s."""
    with TemporaryDirectory(prefix="cortex-test-") as folder:
        input_file, out, err = (Path(folder) / name for name in ("in", "out", "err"))
        input_file.write_text(stdin, encoding="utf-8")
        process = CortexProcess(argv, out, err, stdin=input_file, environ=environ)
        try:
            code = process.wait(90)
        finally:
            process.kill()
        output = (path.read_text(encoding="utf-8") for path in (out, err))
        return subprocess.CompletedProcess(argv, code, *output)


def _run(argv: Sequence[str], files: Sequence[Path], environ: Mapping[str, str]) -> None:
    """Run `cortex ARGV` in the forked process, like `python -m cortex_cli ARGV` after the imports."""
    os.setsid()
    for number, path in enumerate(files):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process exits
        for number, (mode, buffering) in enumerate((("r", -1), ("w", -1), ("w", 1)))
    )
    os.environ.clear()
    os.environ.update(environ)
    from cortex_cli.main import main

    main(argv)
