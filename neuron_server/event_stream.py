"""GET /events as server-sent events, with a bounded cost per subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cortex_common.schema.base import WireModel
from neuron_server.instances.state_machine import Instance
from neuron_server.runtime import Runtime

_KEEPALIVE_S = 3.0
"""Seconds without an event after which a comment is sent as a sign of life."""
_SEND_TIMEOUT_S = 10.0
"""Seconds after which a subscriber that does not accept an event is disconnected."""


class StatusEvents(Response):
    """Sends the whole status after each change, so that a subscriber that missed one is up to date with the next.

    Nothing is queued: changes during a send are merged into the next event. A subscriber that does not accept an event
    in time is disconnected, and can reconnect.

    Args:
        runtime: the node's runtime.
        url_of: returns the base URL of an instance as the subscriber reaches it.
        last_event_id: the Last-Event-ID header of a subscriber that reconnects.
        send_timeout_s: seconds that one send can take.
    """

    def __init__(
        self,
        runtime: Runtime,
        url_of: Callable[[Instance], str],
        last_event_id: str | None,
        send_timeout_s: float = _SEND_TIMEOUT_S,
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._runtime = runtime
        self._url_of = url_of
        self._send_timeout_s = send_timeout_s
        self._last_entry = parse_last_entry(last_event_id, runtime.events.last_number)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send until the subscriber disconnects or is too slow, or the neuron stops."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        sending = asyncio.create_task(self._send_all(send))
        disconnected = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            disconnected.cancel()
            await asyncio.gather(sending, disconnected, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._runtime.changes.subscribe(_KEEPALIVE_S)) as changes:
            async for count in changes:
                data = b":\n\n" if count is None else self._events(count)
                async with asyncio.timeout(self._send_timeout_s):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _events(self, change: int) -> bytes:
        """Return the log entries since the last message, followed by the status."""
        blocks = []
        for number, entry in self._runtime.events.since(self._last_entry):
            blocks.append(_event(f"{change}.{number}", "lifecycle", entry))
            self._last_entry = number
        status = self._runtime.status(self._url_of)
        blocks.append(_event(f"{change}.{self._last_entry}", "status", status))
        return b"".join(blocks)


def _event(event_id: str, name: str, data: WireModel) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {data.model_dump_json()}\n\n".encode()


def parse_last_entry(last_event_id: str | None, last_number: int) -> int:
    """Return the number of the last log entry that a reconnecting subscriber received.

    It is the second number of its Last-Event-ID. A new subscriber, or one with an id of another neuron process, starts
    after the latest entry.
    """
    _, _, number = (last_event_id or "").partition(".")
    return int(number) if number.isdigit() and int(number) <= last_number else last_number


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
