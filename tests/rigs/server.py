"""A server in the test's own event loop that leaves nothing behind when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_ROUNDS = 4
"""Iterations of the event loop within which a pending connection is accepted and passed to the handler. asyncio does
not close connections that are between these steps when the server is closed."""


@contextlib.asynccontextmanager
async def serving(
    serve: Serve,
    tls: ssl.SSLContext | None = None,
    on_start: Callable[[asyncio.Server], None] | None = None,
) -> AsyncIterator[str]:
    """Serve each connection on a free loopback port; yields the URL of the server."""
    writers: dict[asyncio.Future[None], asyncio.StreamWriter] = {}

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        writers[task] = writer
        # Not left to `serve`, because the task of the last connection can be cancelled before it starts.
        task.add_done_callback(lambda task: writers.pop(task).close())

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 27, ssl=tls)
    if on_start is not None:
        on_start(server)
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        server.close()
        for task in tuple(writers):
            task.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
