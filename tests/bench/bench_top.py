"""What a new snapshot of a large fleet costs `cortex top`: `PYTHONPATH=tests python -m tests.bench.bench_top`."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import replace

from sample_fleet import NOW, large_fleet
from top_rig import FedSource, NotingOperator

from cortex_cli.tui.app import Top
from cortex_cli.tui.look import Look


async def measure() -> float:
    """Median processor seconds of a drawing."""
    before = large_fleet(nodes=8, devices=8, models=500)
    app = Top(FedSource(before), NotingOperator(), Look("gw", interval_s=10.0))
    spent = []
    async with app.run_test(size=(200, 50)) as pilot:
        await pilot.pause()
        for step in range(1, 30):
            models = tuple(
                replace(m, requests=m.requests + (i * step) % 7, in_flight=(i + step) % 5)
                for i, m in enumerate(before.models)
            )
            app._known.take(replace(before, at=NOW + step, models=models))
            began = time.process_time()
            app._draw(anyway=True)
            spent.append(time.process_time() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    print(f"500 models on 64 devices, a drawing: {asyncio.run(measure()) * 1000:.1f} ms")
