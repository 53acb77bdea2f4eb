"""GET /events as server-sent events, written so that a slow reader hurts nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cortex_common.schema.base import Wire
from neuron_server.instances.state_machine import Instance
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

    def __init__(
        self,
        runtime: Runtime,
        url_of: Callable[[Instance], str],
        last_event_id: str | None,
        slow_s: float = _SLOW_S,
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._runtime = runtime
        self._url_of = url_of
        self._slow_s = slow_s
        self._noted = noted_before(last_event_id, runtime.events.last)

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
                data = b":\n\n" if number is None else self._news(number)
                async with asyncio.timeout(self._slow_s):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _news(self, number: int) -> bytes:
        """What was noted since the last message, then the status."""
        blocks = []
        for noted, entry in self._runtime.events.since(self._noted):
            blocks.append(_event(f"{number}.{noted}", "lifecycle", entry))
            self._noted = noted
        status = self._runtime.status(self._url_of)
        blocks.append(_event(f"{number}.{self._noted}", "status", status))
        return b"".join(blocks)


def _event(number: str, name: str, data: Wire) -> bytes:
    return f"id: {number}\nevent: {name}\ndata: {data.model_dump_json()}\n\n".encode()


def noted_before(last_event_id: str | None, last: int) -> int:
    """How far a reader that comes back has read the journal: the second number of its Last-Event-ID.

    A new reader, or one that remembers another neuron's numbers, begins with what comes.
    """
    _, _, noted = (last_event_id or "").partition(".")
    return int(noted) if noted.isdigit() and int(noted) <= last else last


async def until_gone(receive: Receive) -> None:
    """Wait until the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
