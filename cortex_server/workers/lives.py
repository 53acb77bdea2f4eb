"""The lives of worker processes: each is started, replaced when it dies, killed when it hangs, and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable

from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_http.server import LAST_S
from cortex_server.workers.backoff import Backoff
from cortex_server.workers.link import Link

log = logging.getLogger("cortex.workers")

SILENCE_S = 30.0
"""A worker says once a second that it lives; one that does not for this long is killed, and replaced."""

_LOOK_S = 1.0


class Lives:
    """See the module.

    Args:
        count: how many workers.
        descriptors: that each of them inherits, the board's first.
        hire: makes the link of a new worker.
        hired: called once its process is there to be spoken to.
        died: called when its process is gone.
    """

    def __init__(
        self,
        count: int,
        descriptors: tuple[int, ...],
        *,
        hire: Callable[[int], Link],
        hired: Callable[[Link], None],
        died: Callable[[Link], None],
    ) -> None:
        self._descriptors = descriptors
        self._hire, self._hired, self._died = hire, hired, died
        self._links: dict[int, Link] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._backoffs = [Backoff() for _ in range(count)]
        # One for all: what a worker remembers by hash others must find by it.
        self._environ = os.environ | {
            "PYTHONHASHSEED": str(random.SystemRandom().randrange(1, 2**32))
        }
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Start all of them; return once they listen.

        Raises:
            CortexError: one ended before.
        """
        loop = asyncio.get_running_loop()
        columns = range(len(self._backoffs))
        await asyncio.gather(*(self._start(column) for column in columns))
        self._tasks = [loop.create_task(self._keep(column)) for column in columns]
        self._tasks.append(loop.create_task(self._look()))
        for column, link in self._links.items():
            await link.listening.wait()
            if link.lost.is_set():
                raise CortexError(f"worker {column} ended as it started; the log above says why")

    def no_more(self) -> None:
        """Replace none any more."""
        self._ending = True

    async def end(self) -> None:
        """Return once all have ended; those that were told to and do not are killed."""
        self.no_more()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * LAST_S):
                await asyncio.gather(*(p.wait() for p in self._processes.values()))
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, column: int) -> None:
        ours, theirs = socket.socketpair()
        link = self._links[column] = self._hire(column)
        with theirs:
            ours.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: link.channel, sock=ours)
            self._processes[column] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "cortex_server.workers"),
                *map(str, (theirs.fileno(), self._descriptors[0], column)),
                pass_fds=(theirs.fileno(), *self._descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environ,
            )
        event(log, "worker_started", worker=column, pid=self._processes[column].pid)
        self._hired(link)

    async def _keep(self, column: int) -> None:
        """See one worker die, and replace it, until none is to be replaced."""
        loop = asyncio.get_running_loop()
        while True:
            began, process, link = loop.time(), self._processes[column], self._links[column]
            code = await process.wait()
            await link.lost.wait()
            self._died(link)
            if self._ending:
                return
            pause = self._backoffs[column].died(loop.time() - began)
            event(
                log,
                "worker_died",
                logging.ERROR,
                worker=column,
                pid=process.pid,
                how=signal.Signals(-code).name if code < 0 else f"exit code {code}",
                replaced_in_s=pause,
            )
            await asyncio.sleep(pause)
            if self._ending:
                return
            await self._start(column)

    async def _look(self) -> None:
        """Kill those that hang."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            for column, link in self._links.items():
                silent = loop.time() - link.heard_at
                process = self._processes[column]
                if silent > SILENCE_S and process.returncode is None:
                    event(log, "worker_hangs", logging.ERROR, worker=column, silent_s=silent)
                    process.kill()
