"""llama.cpp: one llama-server per instance.

Facts: while it loads, every route answers 503; without -m or -hf it becomes a router, so a model is always given;
without unified KV each slot gets -c / -np tokens; -fit may silently move layers to the CPU; LLAMA_ARG_* variables
change it, which the supervisor's allow-list keeps away. Flags come and go between builds, so --help is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.schema.engine_traits import LLAMACPP
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, Launch, Probe
from neuron_server.harness.probe import device_environment, get, get_json, gpu_count
from neuron_server.harness.weights import gguf_file, local_path, repository, size_mb
from neuron_server.process.program import Program, run_program

_CUDA_CONTEXT_MB = 600
"""What a process takes on a GPU before any weights, with a margin."""
_PROCESS_MB = 80
_ALL_LAYERS = "999"
_ON_THE_PROCESSOR = ("BLAS", "CPU", "ZenDNN")
"""Devices of llama.cpp that are no GPU."""


class LlamaCppHarness:
    """GGUF models of all sizes, on GPUs or on the CPU; embeddings and reranking through `args`."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = EngineCapabilities(
            engine="llamacpp",
            traits=LLAMACPP,
            routes=frozenset(
                {
                    "/v1/chat/completions",
                    "/v1/completions",
                    "/v1/embeddings",
                    "/v1/rerank",
                    "/v1/responses",
                    "/v1/messages",
                    "/v1/messages/count_tokens",
                }
            ),
        )
        self._env = entry.env
        self._http = http
        self._program = Program("llama-server", entry.binary, "--help")

    @property
    def program(self) -> str | None:
        """Path of llama-server, where there is one."""
        return self._program.path

    @property
    def missing(self) -> str | None:
        """See `Harness.missing`."""
        return self._program.missing

    async def prepare(self) -> None:
        """Read the flags that this build has."""
        await self._program.inspect()

    async def without_gpu(self) -> str | None:
        """Its own list of devices, which asks the driver: with -ngl alone it would go on without a word."""
        path = self._program.path
        listed = await run_program(path, "--list-devices", env=self._env) if path else None
        if listed is None or not lists_no_gpu(listed):
            return None
        return (
            f"{path} --list-devices shows no GPU, so models are loaded on the processor: "
            "install a build with CUDA (-DGGML_CUDA=ON)"
        )

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - the protocol's
        """Under its own name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """See `Harness.weights_mb`."""
        return size_mb(gguf_file(spec)) if local_path(spec) else None

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:
        """From llama-fit-params, which reads metadata only and is exact; else from the size of the weights."""
        if local_path(spec) is None:
            return None
        overhead = _CUDA_CONTEXT_MB if kind is DeviceKind.CUDA else _PROCESS_MB
        exact = await self._fit_params(spec, kind)
        if exact is not None:
            return exact + overhead
        return size_mb(gguf_file(spec)) * 6 // (5 * spec.tensor_parallel) + overhead

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """See `Harness.launch`."""
        if_supported = self._program.if_supported
        argv = [self._program.require_path(), *_source(spec), "--alias", spec.model_id]
        argv += ["--host", host, "--port", str(port), *_size(spec), *_placement(devices)]
        argv += ["--metrics", *if_supported("-fit", "off")]
        argv += if_supported("--no-ui") or if_supported("--no-webui")
        if not gpu_count(devices):
            argv += if_supported("-dev", "none")
        environment = device_environment(devices) | self._env | spec.env
        return Launch(argv=(*argv, *spec.args), env=environment)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:  # noqa: ARG002 - the protocol's
        """503 "Loading model", then 200; /props tells the rest."""
        response = await get(self._http, url + "/health")
        if response is None:
            return Probe(ready=False, stage="starting")
        if response.status_code != 200:
            return Probe(ready=False, stage="loading weights")
        props = await get_json(self._http, url + "/props") or {}
        build = props.get("build_info")
        return Probe(
            ready=True,
            context=props.get("default_generation_settings", {}).get("n_ctx"),
            parallel=props.get("total_slots"),
            version=f"llama.cpp {build}" if build else None,
        )

    async def in_flight(self, url: str) -> int | None:
        """Slots at work; whatever is deferred waits for one of them."""
        response = await get(self._http, url + "/slots")
        if response is None or response.status_code != 200:
            return None
        return sum(bool(slot.get("is_processing")) for slot in response.json())

    async def _fit_params(self, spec: LoadSpec, kind: DeviceKind) -> int | None:
        if self._program.path is None:
            return None
        program = Path(self._program.path).with_name("llama-fit-params")
        if not program.is_file():
            return None
        layers = _ALL_LAYERS if kind is DeviceKind.CUDA else "0"
        arguments = ["-m", str(gguf_file(spec)), *_size(spec), "-ngl", layers, "--fit-print", "on"]
        printed = await run_program(str(program), *arguments)
        return None if printed is None else parse_fit(printed, kind)


def parse_fit(printed: str, kind: DeviceKind) -> int | None:
    """MiB that the fullest device (or the host) needs, from llama-fit-params.

    It prints a line per device: name, and the MiB of model, context and compute buffers.
    """
    rows = re.findall(r"^(\S+) (\d+) (\d+) (\d+)\s*$", printed, re.MULTILINE)
    on_host = kind is DeviceKind.CPU
    sums = [sum(map(int, row[1:])) for row in rows if (row[0] == "Host") == on_host]
    return max(sums, default=None)


def lists_no_gpu(printed: str) -> bool:
    """Whether `llama-server --list-devices` shows none: "(none)", or libraries that compute on the processor."""
    _, found, devices = printed.partition("Available devices:")
    names = re.findall(r"^\s+(\w+): ", devices, re.MULTILINE)
    return bool(found) and all(name.startswith(_ON_THE_PROCESSOR) for name in names)


def _source(spec: LoadSpec) -> list[str]:
    if local_path(spec) is not None:
        return ["-m", str(gguf_file(spec))]
    source = repository(spec)
    return [
        "-hf",
        f"{source}:{spec.quant}" if spec.quant else source,
        *(["-hff", spec.file] if spec.file else []),
    ]


def _size(spec: LoadSpec) -> list[str]:
    """-c counts all slots together once their number is given."""
    size = ["-c", str((spec.context or 0) * (spec.parallel or 1))]
    return size if spec.parallel is None else [*size, "-np", str(spec.parallel)]


def _placement(devices: Sequence[Device]) -> list[str]:
    """Inside the engine its GPUs are 0, 1, ... whatever they are on the host."""
    gpus = gpu_count(devices)
    if not gpus:
        return ["-ngl", "0"]
    if gpus == 1:
        return ["-ngl", _ALL_LAYERS, "-sm", "none", "-mg", "0"]
    return ["-ngl", _ALL_LAYERS, "-sm", "layer", "-ts", ",".join(["1"] * gpus), "-mg", "0"]
