"""GET /events as server-sent events, written so that a slow reader hurts nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from neuron_server.core.instance import Instance
from neuron_server.runtime import Runtime

_SILENCE_S = 3.0
"""Seconds without news after which a comment shows that the stream lives."""
_SLOW_S = 10.0
"""Seconds that one event may take to leave before its reader is cut."""


class StatusEvents(Response):
    """Sends the whole status again and again; whoever missed one is right with the next.

    Nothing is queued for a reader: while it takes one event, the changes since are one event. One that does not
    take an event in time is cut and may come again.
    """

    def __init__(self, runtime: Runtime, url_of: Callable[[Instance], str]) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._runtime = runtime
        self._url_of = url_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send until the reader goes, is too slow, or the neuron stops."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._runtime.changes.follow(_SILENCE_S)) as changes:
            async for number in changes:
                data = b":\n\n"
                if number is not None:
                    status = self._runtime.status(self._url_of)
                    data = f"id: {number}\nevent: status\ndata: {status.model_dump_json()}\n\n".encode()
                async with asyncio.timeout(_SLOW_S):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive) -> None:
    """Wait until the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
