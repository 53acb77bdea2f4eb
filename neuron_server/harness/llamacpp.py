"""The harness of llama.cpp, with a llama-server per instance.

While llama-server loads, every route answers 503. Without -m or -hf it becomes a router, so a model is always given.
Without a unified KV cache each slot gets -c / -np tokens. -fit can silently move layers to the CPU. LLAMA_ARG_*
variables change its settings, so the supervisor does not pass them on. Flags differ between builds, so they are read
from --help.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.schema.engine_traits import LLAMACPP
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, MemoryEstimate, Probe
from neuron_server.harness.estimates import estimate_llama
from neuron_server.harness.keys import KEY_FILE_FIELD
from neuron_server.harness.llama_arguments import extra_files, memory_arguments
from neuron_server.harness.probe import device_environment, get, get_json, gpu_count
from neuron_server.process.program import Program, run_program
from neuron_server.process.supervisor import Launch
from neuron_server.weights.files import gguf_file, local_path, repository, size_mb
from neuron_server.weights.index import find_weights

_CUDA_CONTEXT_MB = 600
"""GPU memory of a process before weights are loaded, with a margin."""
_PROCESS_MB = 80
_ALL_LAYERS = "999"
_CPU_DEVICES = ("BLAS", "CPU", "ZenDNN")
"""Prefixes of llama.cpp devices that are not GPUs."""


class LlamaCppHarness:
    """GGUF models on GPUs or on the CPU; embeddings and reranking are enabled with `args`."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = EngineCapabilities(
            engine="llamacpp",
            takes_key=True,
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
        self._device_ids = entry.device_ids
        self._program = Program("llama-server", entry.binary, "--help")

    @property
    def program(self) -> str | None:
        """Path of llama-server, if it is installed."""
        return self._program.path

    @property
    def missing_reason(self) -> str | None:
        """Why llama-server can't be run, and what to do about it; None if it can."""
        return self._program.missing_reason

    async def prepare(self) -> None:
        """Read the flags that this build supports."""
        await self._program.inspect()

    async def cpu_only_reason(self) -> str | None:
        """Check llama-server's list of devices: with -ngl it would silently use the CPU if there is no GPU."""
        path = self._program.path
        listed = await run_program(path, "--list-devices", env=self._env) if path else None
        if listed is None or not lists_no_gpu(listed):
            return None
        return (
            f"{path} --list-devices shows no GPU, so models would run on the CPU: "
            "install a build with CUDA (-DGGML_CUDA=ON)"
        )

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - required by the protocol
        """Return None: --alias sets the model's name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """Return the MiB of the GGUF file with all its shards; None if it is not on this host."""
        return size_mb(gguf_file(spec)) if local_path(spec) else None

    async def estimate(
        self, spec: LoadSpec, kind: DeviceKind, devices: Sequence[Device]
    ) -> MemoryEstimate | None:
        """Return what llama-fit-params computes for the arguments of the launch, or else an estimate from the header.

        None for weights that are not found. Files that llama-fit-params ignores (projector, draft model) are added.
        """
        overhead = _CUDA_CONTEXT_MB if kind is DeviceKind.CUDA else _PROCESS_MB
        overhead += await asyncio.to_thread(_extra_files_mb, spec)
        if local_path(spec) is not None:
            fitted = await self._fit_params(spec, kind, devices)
            if fitted is not None:
                return replace(fitted, device_mb=fitted.device_mb + overhead)
        index = await find_weights(spec, self._env)
        if index is None:
            return None
        return estimate_llama(spec, kind, index, overhead_mb=overhead)

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """Return the command of a llama-server."""
        if_supported = self._program.if_supported
        argv = [self._program.require_path(), *_model_flags(spec), "--alias", spec.model_id]
        argv += [
            "--host",
            host,
            "--port",
            str(port),
            *_context_flags(spec, self._program.if_supported("--kv-unified")),
            *_device_flags(devices),
        ]
        argv += ["--metrics", *if_supported("-fit", "off")]
        argv += if_supported("--api-key-file", KEY_FILE_FIELD)
        argv += if_supported("--no-ui") or if_supported("--no-webui")
        if not gpu_count(devices):
            argv += if_supported("-dev", "none")
        environment = device_environment(devices, self._device_ids) | self._env | spec.env
        return Launch(argv=(*argv, *spec.args), env=environment)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:  # noqa: ARG002 - required by the protocol
        """Probe /health, which answers 503 while loading, then read context, slots and version from /props."""
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
        """Return the number of busy slots; deferred requests wait for a slot."""
        response = await get(self._http, url + "/slots")
        if response is None or response.status_code != 200:
            return None
        return sum(bool(slot.get("is_processing")) for slot in response.json())

    async def _fit_params(
        self, spec: LoadSpec, kind: DeviceKind, devices: Sequence[Device]
    ) -> MemoryEstimate | None:
        if self._program.path is None:
            return None
        program = Path(self._program.path).with_name("llama-fit-params")
        if not program.is_file():
            return None
        on_gpu = kind is DeviceKind.CUDA
        arguments = [
            *_model_flags(spec),
            *_context_flags(spec, self._program.if_supported("--kv-unified")),
            *(_device_flags(devices) if devices or not on_gpu else ["-ngl", _ALL_LAYERS]),
            *memory_arguments(spec.args),
            "--fit-print",
            "on",
        ]
        # Without chosen devices, the model is computed as split over all of the host's GPUs.
        visible = device_environment(devices, self._device_ids) if devices or not on_gpu else {}
        printed = await run_program(str(program), *arguments, env=visible | self._env | spec.env)
        count = max(spec.tensor_parallel, len(devices))
        return None if printed is None else parse_fit_params(printed, kind, count)


def parse_fit_params(printed: str, kind: DeviceKind, count: int = 1) -> MemoryEstimate | None:
    """Return the memory from the output of llama-fit-params, without the engine's own overhead.

    It prints a line per device: its name, and the MiB of model, context and compute buffers; the host is the last. If
    it saw other devices than the engine will, the sum over all of them counts.

    Args:
        printed: the output.
        kind: the kind of devices that the engine will use.
        count: their number.
    """
    rows = re.findall(r"^(\S+) (\d+) (\d+) (\d+)\s*$", printed, re.MULTILINE)
    by_device: dict[str, int] = {}
    for name, *parts in rows:
        by_device[name] = by_device.get(name, 0) + sum(map(int, parts))
    host_mb = by_device.pop("Host", None)
    if kind is DeviceKind.CPU:
        return None if host_mb is None else MemoryEstimate(host_mb)
    if not by_device:
        return None
    sizes = by_device.values()
    device_mb = max(sizes) if len(sizes) == count else -(-sum(sizes) // count)
    return MemoryEstimate(device_mb, host_mb or 0)


def lists_no_gpu(printed: str) -> bool:
    """Return whether the output of `llama-server --list-devices` has no GPU: "(none)", or only CPU libraries."""
    _, found, devices = printed.partition("Available devices:")
    names = re.findall(r"^\s+(\w+): ", devices, re.MULTILINE)
    return bool(found) and all(name.startswith(_CPU_DEVICES) for name in names)


def _model_flags(spec: LoadSpec) -> list[str]:
    if local_path(spec) is not None:
        return ["-m", str(gguf_file(spec))]
    source = repository(spec)
    return [
        "-hf",
        f"{source}:{spec.quant}" if spec.quant else source,
        *(["-hff", spec.file] if spec.file else []),
    ]


def _context_flags(spec: LoadSpec, unified: Sequence[str]) -> list[str]:
    """Return the flags for context and slots; -c is the sum over all slots if -np is given.

    The model's own context (-c 0) would be divided by the number of slots, so they share one cache of that size if this
    build can: `unified` is the flag for it.
    """
    size = ["-c", str((spec.context or 0) * (spec.parallel or 1))]
    if spec.parallel is None:
        return size
    shared = unified if spec.context is None else ()
    return [*size, "-np", str(spec.parallel), *shared]


def _extra_files_mb(spec: LoadSpec) -> int:
    files = [Path(path).expanduser() for path in extra_files(spec.args)]
    return sum(size_mb(path) for path in files if path.is_file())


def _device_flags(devices: Sequence[Device]) -> list[str]:
    """Return the flags for devices; the engine's GPUs are 0, 1, ... regardless of their index on the host."""
    gpus = gpu_count(devices)
    if not gpus:
        return ["-ngl", "0"]
    if gpus == 1:
        return ["-ngl", _ALL_LAYERS, "-sm", "none", "-mg", "0"]
    return ["-ngl", _ALL_LAYERS, "-sm", "layer", "-ts", ",".join(["1"] * gpus), "-mg", "0"]
