"""Soak test: sends a day's requests as fast as possible and shows whether resources leak.

`python -m tests.bench.soak [REQUESTS]` sends streaming and other requests through a real gateway, and cancels some at
random times. At the end, memory, file descriptors, connections and counters should be the same as after the first
tenth. The results are only printed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import uvloop

from cortex_common.client.gateway import OperatorClient
from tests.bench.backend import END, WHOLE
from tests.bench.candidates import cortex, free_port, process

_CONNECTIONS = 32
_CANCELS = 0.03


def request(stream: bool) -> bytes:
    """Return one HTTP request."""
    body = (
        b'{"model":"mock","stream":%b,"max_tokens":20,"messages":[{"role":"user","content":"hi"}],'
    )
    body += b'"stream_options":{"include_usage":true}}'
    body %= b"true" if stream else b"false"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


REQUESTS = (request(stream=False), request(stream=True))
LAST = (WHOLE[-20:], END[-14:] + b"\r\n0\r\n\r\n")


async def client(port: int, todo: list[int], outcomes: Counter[str], seed: int) -> None:
    """Send requests until none are left, on one connection that is reopened when it is closed."""
    rng = random.Random(seed)
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while todo:
        todo.pop()
        if writer is None or reader is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        kind = rng.random() < 0.5
        writer.write(REQUESTS[kind])
        if rng.random() < _CANCELS:
            await asyncio.sleep(rng.random() * 0.004)
            writer.transport.abort()
            reader = writer = None
            outcomes["cancelled"] += 1
            continue
        try:
            answer = await reader.readuntil(LAST[kind])
        except (asyncio.IncompleteReadError, ConnectionError):
            outcomes["lost"] += 1
            reader = writer = None
            continue
        outcomes["complete" if answer.startswith(b"HTTP/1.1 200") else "rejected"] += 1
    if writer is not None:
        writer.close()


def state(pid: int) -> str:
    """Return the memory, file descriptors and sockets of the gateway."""
    gateway = psutil.Process(pid)
    rss = gateway.memory_info().rss / 1024 / 1024
    sockets = len(gateway.net_connections())
    return f"{rss:7.1f} MiB resident, {gateway.num_fds():4} descriptors, {sockets:4} sockets"


async def soak(port: int, pid: int, total: int) -> None:
    """Send all requests, and print the state of the gateway after each tenth."""
    outcomes: Counter[str] = Counter()
    print(f"{'start':>9}: {state(pid)}")
    for tenth in range(10):
        started = time.monotonic()
        todo = [0] * (total // 10)
        count = len(todo)
        await asyncio.gather(
            *(client(port, todo, outcomes, tenth * 1000 + n) for n in range(_CONNECTIONS))
        )
        rate = count / (time.monotonic() - started)
        print(f"{(tenth + 1) * count:9}: {state(pid)}, {rate:6.0f} requests/s", flush=True)
    async with OperatorClient(f"http://127.0.0.1:{port}", who="the gateway") as operator:
        fleet = await operator.fleet()
    in_flight = sum(instance.in_flight for instance in fleet.instances())
    print(f"{dict(outcomes)}; in flight at the end: {in_flight}")


def main(total: int) -> None:
    """Start a backend and the gateway, and run the test."""
    with tempfile.TemporaryDirectory() as folder:
        work, backend = Path(folder), free_port()
        argv = [sys.executable, "-m", "tests.bench.backend", str(backend)]
        with (
            process(argv, backend, work / "backend.log", "0"),
            cortex(backend, work, "1") as gateway,
        ):
            uvloop.run(soak(gateway.port, gateway.pids[0], total))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
