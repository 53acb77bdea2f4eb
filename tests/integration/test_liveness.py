"""Hosts that vanish without a word: whether the kernel is asked to look for them, while a request waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from rigs.engine import scripted_engine
from rigs.inprocess_gateway import running_gateway
from rigs.neuron import scripted_neuron

_KEEPALIVE = "02"
"""The timer of a connection whose other end is asked in time; see proc_net_tcp in the kernel's documentation."""


def timers() -> dict[tuple[int, int], str]:
    """Return the timer of each TCP connection of this host, by local and remote port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {(_port(row[1]), _port(row[2])): row[5].partition(":")[0] for row in rows}


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


async def test_both_ends_of_a_waiting_request_are_looked_for():
    """An engine's host without power, or a client's, is noticed long before the limits on silence."""
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(neurons={"n": neuron.url}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        while not gateway.gateway.fleet.ready("m"):
            await asyncio.sleep(0)
        waiting = asyncio.create_task(
            http.post("/v1/chat/completions", json={"model": "m", "messages": []})
        )
        await engine.call(0)
        of_engine = httpx.URL(engine.url).port
        async with asyncio.timeout(10):
            found: list[str] = []
            while found != [_KEEPALIVE] * 2:  # until the last bytes are acknowledged
                await asyncio.sleep(0)
                found = [
                    timer
                    for (local, remote), timer in timers().items()
                    if remote and (local == gateway.port or remote == of_engine)
                ]
        waiting.cancel()
