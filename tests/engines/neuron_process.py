"""Neurons as processes that need not import everything anew: each is forked off a server that has done so."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    # uvicorn imports the last two only when it serves. The server knows installed packages only, not tests/.
    ["__main__", "neuron_server.app", "uvicorn.protocols.http.httptools_impl", "uvloop"]
)


class NeuronProcess:
    """A neuron's process.

    Args:
        config: its neuron.toml.
        log: file that its output is appended to.
    """

    def __init__(self, config: Path, log: Path) -> None:
        from engines.neuron_main import main

        self._process: ForkServerProcess = _FORKS.Process(
            target=main, args=(config, log, dict(os.environ)), daemon=True
        )
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the status that it ended with, negative for a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        self._process.join(30)
        status = self._process.exitcode
        assert status is not None, "the neuron did not end"
        self._process.close()
        return status
