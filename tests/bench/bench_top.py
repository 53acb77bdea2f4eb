"""What `cortex top` costs on a large, busy fleet: `PYTHONPATH=tests python -m tests.bench.bench_top [MINUTES]`.

A stand-in for a gateway tells a new snapshot as often as it is asked to, as a real one does. `cortex top` is the
real process on a terminal of 200x50, and looks at each of its five views in turn.
"""

from __future__ import annotations

import asyncio
import fcntl
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
from sample_fleet import NOW, large_fleet, sample_requests
from top_rig import FedSource, NotingOperator

from cortex_cli.tui.app import Top
from cortex_cli.tui.look import Look
from cortex_common.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.trail import TrailEntry

MODELS, NODES, DEVICES = 500, 8, 8
_SETTLE_S = 20.0


def at_step(before: FleetSnapshot, step: int) -> FleetSnapshot:
    """The fleet after so many quarters of a second: a hundred models are busy."""
    models = tuple(
        replace(m, requests=i * step % 997, tokens_out=i * step * 30, in_flight=(i + step) % 5)
        if i < 100
        else m
        for i, m in enumerate(before.models)
    )
    return replace(before, version=step, at=NOW + step / 4, models=models)


async def drawing() -> float:
    """Median processor seconds of a drawing."""
    before = large_fleet(nodes=NODES, devices=DEVICES, models=MODELS)
    app = Top(FedSource(before), NotingOperator(), Look("gw", interval_s=10.0))
    spent = []
    async with app.run_test(size=(200, 50)) as pilot:
        await pilot.pause()
        for step in range(1, 30):
            app._known.take(at_step(before, step))
            began = time.process_time()
            app._draw(anyway=True)
            spent.append(time.process_time() - began)
    return statistics.median(spent)


def stand_in() -> FastAPI:
    """A gateway that only tells."""
    app = FastAPI()
    before = large_fleet(nodes=NODES, devices=DEVICES, models=MODELS)

    async def told(pause: float) -> AsyncIterator[bytes]:
        step = 0
        while True:
            step += 1
            data = SNAPSHOT.dump_json(at_step(before, step))
            yield b"event: fleet\nid: %d.0\ndata: %b\n\n" % (step, data)
            entry = TrailEntry(id=step, at=NOW, actor="cortex", event="evicting")
            text = entry.model_dump_json().encode()
            yield b"event: lifecycle\nid: %d.%d\ndata: %b\n\n" % (step, step, text)
            await asyncio.sleep(pause)

    @app.get("/operator/v1/events")
    async def events(pause: float) -> StreamingResponse:
        return StreamingResponse(told(pause), media_type="text/event-stream")

    @app.get("/operator/v1/requests")
    async def requests() -> object:
        return sample_requests()

    return app


def on_a_terminal(url: str) -> tuple[psutil.Process, int]:
    """`cortex top` as a process, and its terminal."""
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


async def lasting(minutes: float) -> None:
    """Tell percent of a core and resident memory, minute by minute."""
    server = uvicorn.Server(uvicorn.Config(stand_in(), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        process, terminal = on_a_terminal(f"http://127.0.0.1:{sock.getsockname()[1]}")
        loop = asyncio.get_running_loop()
        drawn = bytearray()
        loop.add_reader(terminal, lambda: drawn.extend(os.read(terminal, 65536)))
        await asyncio.sleep(_SETTLE_S)
        assert b"team-0/model" in drawn, bytes(drawn[-2000:])
        began, spent = time.monotonic(), sum(process.cpu_times()[:2])
        for minute in range(1, round(minutes) + 1):
            os.write(terminal, b"12345"[minute % 5 : minute % 5 + 1])
            await asyncio.sleep(60)
            percent = 100 * (sum(process.cpu_times()[:2]) - spent) / (time.monotonic() - began)
            mib = process.memory_info().rss / 2**20
            print(
                f"minute {minute}: {percent:.1f} % of a core so far, {mib:.1f} MiB, "
                f"{len(drawn) / 1024:.0f} KiB drawn",
                flush=True,
            )
            drawn.clear()
        os.write(terminal, b"q")
        loop.remove_reader(terminal)
        await asyncio.to_thread(process.wait, 10)
        server.force_exit = server.should_exit = True
        await serving


if __name__ == "__main__":
    print(
        f"{MODELS} models on {NODES * DEVICES} devices, a drawing: {asyncio.run(drawing()) * 1000:.1f} ms"
    )
    if len(sys.argv) > 1:
        asyncio.run(lasting(float(sys.argv[1])))
