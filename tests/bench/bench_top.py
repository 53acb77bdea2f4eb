"""Benchmark of `cortex top` on a large, busy fleet: `PYTHONPATH=tests python -m tests.bench.bench_top [MINUTES]`.

A fake gateway sends new snapshots at the requested rate, like a real one. `cortex top` is the real process on a
terminal of 200x50 cells, and shows each of its five views in turn for a minute.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import pty
import socket
import statistics
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sample_fleet import NOW, large_fleet
from top_rig import FedSource, RecordingOperator

from cortex_cli.tui.app import Top
from cortex_cli.tui.options import ScreenOptions
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.schema.requests import RequestList, RequestState, RequestView

MODELS, NODES, DEVICES = 500, 8, 8
VIEWS = ("overview", "models", "gpus", "requests", "events")
_SETTLE_S = 20.0


def at_step(before: FleetSnapshot, step: int) -> FleetSnapshot:
    """Return the fleet after a number of quarter seconds; a hundred models and all devices are busy."""
    models = tuple(
        replace(m, requests=i * step % 997, tokens_out=i * step * 30, in_flight=(i + step) % 5)
        if i < 100
        else m
        for i, m in enumerate(before.models)
    )
    nodes = tuple(
        replace(
            node,
            seen_at=NOW + step / 4,
            devices=tuple(
                replace(d, utilization_pct=(17 * i + 13 * step) % 101, temp_c=50 + (i + step) % 9)
                for i, d in enumerate(node.devices)
            ),
        )
        for node in before.nodes
    )
    return replace(before, version=step, at=NOW + step / 4, nodes=nodes, models=models)


def requests_at(step: int, last: int) -> RequestList:
    """Return fifty requests in flight and the latest finished ones; ten requests finish per step."""

    def request(number: int, state: RequestState, **more: object) -> RequestView:
        return RequestView.model_validate(
            {
                "id": f"req-{number:08}", "route": "/v1/chat/completions", "state": state,
                "model": f"team-{number % 7}/model-{number % 100:03}", "key": f"key-{number % 5}",
                "started": NOW + number / 10, "node": f"node{number % NODES}", "ttft_ms": 84.0,
                "total_ms": 40.0 * (number % 200), "tokens_in": 700,
            } | more
        )  # fmt: skip

    first = 10 * step
    active = (request(first + n, RequestState.DECODE, tokens_out=7 * step - n) for n in range(50))
    ended = (
        request(first - n, RequestState.DONE, tokens_out=300, outcome="ok")
        for n in range(1, last + 1)
    )
    return RequestList(at=NOW + step / 4, active=tuple(active), recent=tuple(ended))


async def drawing() -> float:
    """Return the median CPU seconds to render the view."""
    before = large_fleet(nodes=NODES, devices=DEVICES, models=MODELS)
    app = Top(FedSource(before), RecordingOperator(), ScreenOptions("gw", interval_s=10.0))
    cpu_s = []
    async with app.run_test(size=(200, 50)) as pilot:
        await pilot.pause()
        for step in range(1, 30):
            app._state.update(at_step(before, step))
            started = time.process_time()
            app._draw(force=True)
            cpu_s.append(time.process_time() - started)
    return statistics.median(cpu_s)


def fake_gateway() -> FastAPI:
    """Return an app with the operator API routes that `cortex top` reads."""
    app = FastAPI()
    before = large_fleet(nodes=NODES, devices=DEVICES, models=MODELS)

    async def stream(pause: float) -> AsyncIterator[bytes]:
        step = 0
        while True:
            step += 1
            data = SNAPSHOT.dump_json(at_step(before, step))
            yield b"event: fleet\nid: %d.0\ndata: %b\n\n" % (step, data)
            entry = AuditEntry(id=step, at=NOW, actor="cortex", event="eviction_started")
            text = entry.model_dump_json().encode()
            yield b"event: lifecycle\nid: %d.%d\ndata: %b\n\n" % (step, step, text)
            await asyncio.sleep(pause)

    @app.get("/operator/v1/events")
    async def events(pause: float) -> StreamingResponse:
        return StreamingResponse(stream(pause), media_type="text/event-stream")

    steps = itertools.count(100)

    @app.get("/operator/v1/requests")
    async def requests(last: int = 500) -> RequestList:
        return requests_at(next(steps), last)

    return app


def on_a_terminal(url: str) -> tuple[psutil.Process, int]:
    """Start `cortex top` on a pseudo-terminal, and return the process and the terminal's file descriptor."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = psutil.Popen(
        [sys.executable, "-m", "cortex_cli", "top", "-g", url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    return process, ours


async def measure(minutes: float) -> None:
    """Print CPU use in percent of a core and resident memory every minute."""
    server = uvicorn.Server(uvicorn.Config(fake_gateway(), log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        process, terminal = on_a_terminal(f"http://127.0.0.1:{sock.getsockname()[1]}")
        loop = asyncio.get_running_loop()
        drawn = bytearray()

        def read() -> None:
            try:
                drawn.extend(os.read(terminal, 65536))
            except OSError:  # the process has exited
                loop.remove_reader(terminal)

        loop.add_reader(terminal, read)
        await asyncio.sleep(_SETTLE_S)
        assert b"team-0/model" in drawn, bytes(drawn[-2000:])

        def seconds() -> float:
            return sum(process.cpu_times()[:2])

        first = before = seconds()
        started = since = time.monotonic()
        for minute in range(1, round(minutes) + 1):
            view = VIEWS[minute % 5]
            os.write(terminal, b"12345"[minute % 5 : minute % 5 + 1])
            drawn.clear()
            await asyncio.sleep(60)
            now, cpu_s = time.monotonic(), seconds()
            print(
                f"minute {minute:2} {view:8} {100 * (cpu_s - before) / (now - since):5.1f} % of a core, "
                f"{100 * (cpu_s - first) / (now - started):5.1f} % so far, "
                f"{process.memory_info().rss / 2**20:.1f} MiB, {len(drawn) / 1024:.0f} KiB drawn",
                flush=True,
            )
            before, since = cpu_s, now
        os.write(terminal, b"q")
        # The terminal is read until the process exits, because it can't exit while its writes block.
        await asyncio.to_thread(process.wait, 10)
        server.force_exit = server.should_exit = True
        await serving


if __name__ == "__main__":
    print(
        f"{MODELS} models on {NODES * DEVICES} devices, one render: {asyncio.run(drawing()) * 1000:.1f} ms"
    )
    if len(sys.argv) > 1:
        asyncio.run(measure(float(sys.argv[1])))
