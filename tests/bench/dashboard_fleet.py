"""Runs a fleet under load with a real Prometheus, to render the image of the dashboard for the documentation.

`PYTHONPATH=tests python -m tests.bench.dashboard_fleet [MINUTES]` writes docs/images/dashboard.svg, and fails if a
panel has no data. It requires Debian's package prometheus. One node has tiny models on the real embedded engine; the
other has GPUs of a fake NVML and scripted engines, because test machines have no GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
from engines.fake_nvml import MIB, FakeGpu, FakeNvml
from engines.neuron_rig import NeuronRig
from rigs.fleet import free_port
from rigs.gateway import GatewayProcess, gateway_process, neuron_table

from cortex_cli.demo.files import CAPACITY_MB, TINY_MODEL_MB, write_models
from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.fleet import NodeState
from cortex_common.schema.operations import UnloadModelRequest
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.main import create_runtime, create_server
from tests.bench.dashboard import query_panels, render

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "docs" / "images" / "dashboard.svg"
TOKEN = "token-of-both-neurons"
ENGINE = ROOT / "tests" / "engines" / "fake_engine.py"
SCRIPTED = {
    "scripted/large": ["--interval", "0.02", "--tokens", "60", "--first-byte", "0.15"],
    "scripted/no-done": ["--no-done"],
    "scripted/broken": ["--status", "500"],
}
TINY = ("demo/ada", "demo/bob", "demo/cleo")


@contextlib.asynccontextmanager
async def gpu_node(folder: Path) -> AsyncIterator[tuple[str, list[FakeGpu]]]:
    """Run a neuron with two fake GPUs; yields its URL and the GPUs."""
    gpus = [FakeGpu(0), FakeGpu(1)]
    config = NeuronConfig.model_validate(
        {
            "neuron": {"token": TOKEN, "state_dir": folder / "gpus"},
            "harnesses": [
                {
                    "name": "scripted",
                    "kind": "command",
                    "command": [
                        *(sys.executable, str(ENGINE), "--host", "{host}"),
                        *("--port", "{port}", "--model", "{model}"),
                    ],
                    "port_range": (31000, 31099),
                }
            ],
        }
    )
    runtime = create_runtime(config, (NvmlSource(FakeNvml(*gpus)),))
    server = create_server(config, runtime)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", gpus
        finally:
            runtime.changes.close()
            server.force_exit = True
            server.stop()
            await serving


async def vary_readings(gpus: list[FakeGpu]) -> None:
    """Change the readings of the GPUs every second."""
    for second in itertools.count():
        for number, card in enumerate(gpus):
            busy = 0.5 + 0.4 * math.sin(second / 20 + number)
            used = int((2000 + 500 * busy) * MIB)
            card.answers |= {
                "UtilizationRates": SimpleNamespace(gpu=int(busy * 100), memory=7),
                "Temperature": int(45 + 30 * busy),
                "PowerUsage": int(90_000 + 250_000 * busy),
                "MemoryInfo": SimpleNamespace(total=8000 * MIB, free=8000 * MIB - used, used=used),
            }
        await asyncio.sleep(1)


async def send_request(http: httpx.AsyncClient, model: str, *, leave: bool = False) -> None:
    """Stream one response; with `leave`, disconnect after the first bytes."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": random.randint(10, 60),
        "messages": [{"role": "user", "content": "word " * random.randint(5, 60)}],
    }
    with contextlib.suppress(httpx.HTTPError):
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_bytes():
                if leave:
                    return


async def send_traffic(url: str) -> None:
    """Send requests from several clients, some of which disconnect early or use wrong models."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http, asyncio.TaskGroup() as group:

        async def client(number: int) -> None:
            for turn in itertools.count(number):
                minute = int(time.monotonic() // 40)
                tiny = TINY[(minute + turn % 2) % 3]
                model = (tiny, "scripted/large", "scripted/no-done", tiny)[turn % 4]
                if turn % 37 == 0:
                    model = random.choice(("scripted/broken", "unknown/model"))
                await send_request(http, model, leave=turn % 23 == 0)
                await asyncio.sleep(random.expovariate(1.5))

        for number in range(6):
            group.create_task(client(number))


async def operate(gateway: GatewayProcess) -> None:
    """Unload a busy model from time to time, like an operator."""
    async with gateway.operator() as operator:
        while True:
            await asyncio.sleep(45)
            await operator.unload(UnloadModelRequest(model="scripted/large"))


@contextlib.contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[str]:
    """Run Prometheus with the repository's rules and the given targets; yields its URL."""
    rules = ROOT / "config" / "prometheus" / "cortex-alerts.yml"
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 5s}\n"
        f"rule_files: [{rules}]\n"
        f"scrape_configs: [{{job_name: cortex, static_configs: [{{targets: {targets}}}], "
        f"authorization: {{credentials: {TOKEN}}}}}]\n"
    )
    port = free_port()
    with subprocess.Popen(
        [
            *("prometheus", f"--config.file={folder}/prometheus.yml"),
            *(f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "prometheus.log").open("w"),
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def models_toml(folder: Path) -> str:
    """Return the contents of models.toml."""
    tables = [
        f'[[models]]\nid = "{m.id}"\nharness = "embedded"\nsource = "{m.path.parent}"\n'
        f'file = "{m.path.name}"\nvram_mb = {TINY_MODEL_MB}\n'
        for m in write_models(folder)
    ]
    tables += [
        f'[[models]]\nid = "{name}"\nharness = "scripted"\nvram_mb = 900\nargs = {args}\n'
        for name, args in SCRIPTED.items()
    ]
    return "\n".join(tables)


async def main(minutes: float) -> int:
    """Run everything, and return the number of panels without data."""
    folder = Path(tempfile.mkdtemp(prefix="cortex-dashboard-"))
    rig = NeuronRig(folder / "here", memory_mb=CAPACITY_MB, neuron=f'token = "{TOKEN}"')
    try:
        rig.start()
        async with (
            gpu_node(folder) as (gpu_url, gpus),
            gateway_process(
                folder,
                neuron_table("here", rig.url, token=TOKEN),
                neuron_table("gpus", gpu_url, token=TOKEN),
                "[eviction]\nmin_residency = 5\n",
                "[limits]\nmax_in_flight = 4\n",
                models=models_toml(folder),
            ) as gateway,
        ):
            await gateway.until(lambda fleet: all(n.state is NodeState.UP for n in fleet.nodes))
            targets = [f"127.0.0.1:{gateway.metrics_port}", *_hosts(rig.url, gpu_url)]
            with prometheus(folder, targets) as url:
                work = [
                    asyncio.create_task(w)
                    for w in (vary_readings(gpus), send_traffic(gateway.url), operate(gateway))
                ]
                start = time.time()
                done, _ = await asyncio.wait(
                    work, timeout=minutes * 60, return_when=asyncio.FIRST_COMPLETED
                )
                assert not done, [task.exception() for task in done]
                end = time.time()
                panels = query_panels(url, start, end)
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
    finally:
        rig.close()
        shutil.rmtree(folder, ignore_errors=True)
    IMAGE.write_text(render(panels, start, end))
    for panel in panels:
        if panel.empty:
            print(f"no data: {panel.title}")
    print(f"{len(panels)} panels over {end - start:.0f} s in {IMAGE.relative_to(ROOT)}")
    return sum(panel.empty for panel in panels)


def _hosts(*urls: str) -> list[str]:
    return [url.removeprefix("http://") for url in urls]


if __name__ == "__main__":
    sys.exit(asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)))
