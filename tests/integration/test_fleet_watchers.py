"""Watchers of nodes: whatever answers on a neuron's port, the node is up again once its neuron answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from rigs.inprocess_gateway import running_gateway
from rigs.server import serving

from cortex_common.schema.fleet import NodeState

Answer = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
STATUS = b'event: status\ndata: {"health": {"uptime_secs": 1}}\n\n'
DISCOVERY = b'{"hostname": "n", "os": "", "kernel": ""}'


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a complete response."""
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


async def neuron(writer: asyncio.StreamWriter, head: bytes) -> None:
    """Answer as a neuron does."""
    if head.startswith(b"GET /events"):
        writer.write(EVENTS + STATUS)
    else:
        writer.write(response(DISCOVERY))


NONSENSE = {
    "a web page": response(b"<html>"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an unreadable status": EVENTS + b'event: status\ndata: {"health": 1}\n\n',
    "a status that is no JSON": EVENTS + b"event: status\ndata: \xff\xfe\n\n",
    "an id that no header can hold": EVENTS + b"id: \xff\xc3\xa4\nevent: status\ndata: {}\n\n",
    "a redirect without an address": response(b"", b"302 Found"),
    "an empty error": response(b"", b"500 Oops"),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
async def test_another_program_on_the_port_ends_no_watcher(nonsense: bytes) -> None:
    """A node whose port answered nonsense is unreachable with a reason, and up once its neuron is back."""
    answered = asyncio.Event()
    restored = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if restored.is_set():
                    await neuron(writer, head)
                else:
                    writer.write(nonsense)
                    await writer.drain()
                    writer.close()
                    answered.set()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async with serving(serve) as url, running_gateway(neurons={"n": url}) as gateway:
        fleet = gateway.gateway.fleet
        changed = asyncio.Event()
        fleet.on_change(changed.set)
        await answered.wait()
        async with asyncio.timeout(30):
            while fleet.state("n") is not NodeState.UNREACHABLE:
                changed.clear()
                await changed.wait()
            assert fleet.snapshot.nodes[0].reason
            restored.set()
            while fleet.state("n") is not NodeState.UP:
                changed.clear()
                await changed.wait()
