"""Benchmark of the proxy against other gateways: CPU per request and per streamed event, latency, correct bytes.

The mock backend and the load client are C programs, so that neither is the bottleneck. On a machine with two cores,
backend and client share one and the gateway uses the other. Candidates take turns for several rounds, and medians are
reported. On a shared machine, CPU time is reliable; rates depend on it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.candidates import CACHE, CANDIDATES, Candidate, Running, free_port, process

SCENARIOS: dict[str, list[str]] = {
    "ns32": ["-c", "32"],
    "ns256": ["-c", "256"],
    "s50": ["-s", "-c", "50", "-n", "100", "-i", "20000"],
    "s500": ["-s", "-c", "500", "-n", "100", "-i", "20000"],
    "s1000": ["-s", "-c", "1000", "-n", "100", "-i", "20000"],
    "sat": ["-s", "-c", "64", "-n", "200", "-i", "0"],
}


@dataclass(frozen=True, slots=True)
class Instruments:
    """The compiled benchmark programs."""

    mock: Path
    loadgen: Path


def instruments() -> Instruments | None:
    """Compile the programs from $CORTEX_BENCH_TOOLS, or shared/bench beside the project; None without sources."""
    default = Path(__file__).resolve().parents[3] / "shared" / "bench"
    sources = Path(os.environ.get("CORTEX_BENCH_TOOLS", default))
    if not (sources / "loadgen.c").exists():
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("mock", "loadgen"):
        subprocess.run(
            ["gcc", "-O2", "-o", str(CACHE / name), str(sources / f"{name}.c")], check=True
        )
    return Instruments(CACHE / "mock", CACHE / "loadgen")


@dataclass(frozen=True, slots=True)
class Cpus:
    """CPU lists that each part is pinned to, in the format of `taskset -c`."""

    backend: str
    client: str
    gateway: str


def measure(
    tools: Instruments, running: Running, mock_pid: int, scenario: str, seconds: int, cpus: Cpus
) -> dict[str, Any]:
    """Run one scenario once, and return the JSON of the load client."""
    argv = ["taskset", "-c", cpus.client, str(tools.loadgen), "-p", str(running.port), "-m", "mock"]
    argv += [*SCENARIOS[scenario], "-d", str(seconds), "-w", "500"]
    argv += ["-M", ",".join(map(str, running.relay_pids or (mock_pid,)))]
    if running.pids:
        argv += ["-K", ",".join(map(str, running.pids))]
    if not running.strict:
        argv.append("-X")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"loadgen: {done.stdout}{done.stderr}")
    result = dict(json.loads(done.stdout))
    if running.relay_pids:
        # The second group of processes that the load client measures is the neuron here.
        result["relay_us_per_req"] = result["mock_cpu"] * 1e6 / max(result["reqs"], 1)
        result["relay_us_per_event"] = result["mock_cpu"] * 1e6 / max(result["events"], 1)
    return result


def run(
    names: list[str], scenarios: list[str], rounds: int, seconds: int, cpus: Cpus
) -> dict[str, Any]:
    """Run interleaved rounds over all installed candidates.

    Raises:
        RuntimeError: the sources of the benchmark programs are missing.
    """
    tools = instruments()
    if tools is None:
        raise RuntimeError("set CORTEX_BENCH_TOOLS to the folder with mock.c and loadgen.c")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        backend = free_port()
        mock_argv = [str(tools.mock), "-p", str(backend)]
        with process(mock_argv, backend, work / "mock.log", cpus.backend) as mock:
            for _ in range(rounds):
                for candidate in _installed(names, versions):
                    with candidate.start(backend, work, cpus.gateway) as running:
                        for scenario in scenarios:
                            if candidate.scenarios and scenario not in candidate.scenarios:
                                continue
                            result = measure(tools, running, mock.pid, scenario, seconds, cpus)
                            results.setdefault(candidate.name, {}).setdefault(scenario, []).append(
                                result
                            )
                            print(line(candidate.name, scenario, result), flush=True)
    return {"results": results, "versions": versions, "machine": machine(cpus)}


def _installed(names: list[str], versions: dict[str, str]) -> list[Candidate]:
    found = []
    for candidate in CANDIDATES:
        if candidate.name in names and (version := candidate.version()) is not None:
            versions[candidate.name] = version
            found.append(candidate)
    return found


def machine(cpus: Cpus) -> str:
    """Describe the machine and the CPU pinning."""
    system = f"{platform.system()} {platform.machine()}"
    pinned = f"backend on {cpus.backend}, client on {cpus.client}, gateway on {cpus.gateway}"
    return f"{os.cpu_count()} cores ({pinned}), {system}, Python {platform.python_version()}"


def line(name: str, scenario: str, result: dict[str, Any]) -> str:
    """Format the result of one run."""
    return (
        f"{name:14} {scenario:6} {result['rps']:9.0f} req/s {result['eps']:9.0f} ev/s "
        f"{result['cpu_us_per_req']:9.1f} us/req {result['cpu_us_per_event']:8.2f} us/ev "
        + (
            f"relay {result['relay_us_per_req']:9.1f} us/req {result['relay_us_per_event']:8.2f} us/ev "
            if "relay_us_per_req" in result
            else ""
        )
        + f"ttft p99 {result['ttft']['p99'] / 1000:8.1f} ms  "
        + f"err {result['err']} bad {result['bad']} non200 {result['non200']}"
    )


def median(runs: list[dict[str, Any]], *path: str) -> float:
    """Return the median of a figure over the rounds."""
    values = []
    for run_ in runs:
        value: Any = run_
        for key in path:
            value = value[key]
        values.append(float(value))
    return statistics.median(values)
