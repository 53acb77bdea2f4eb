"""The harness of mistral.rs, with a `mistralrs serve` per instance.

mistral.rs 0.8 and 0.9: models can't be added at run time, so each has its own process. It listens only after the load.
A model can't be given a name, so a local path is requested as "default". Tensor-parallel workers outlive their leader
and share one socket name per host, so a host can run one such engine at a time, and the whole process group is killed.
By default the KV cache takes 90% of the GPU; --pa-memory-mb sets a size instead, and fails fast. 0.8 has no --no-ui and
no --quant, and requires --format for GGUF files, so the supported flags are read from --help.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import MISTRALRS
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, MemoryEstimate, Probe
from neuron_server.harness.command import sum_series
from neuron_server.harness.estimates import estimate_memory
from neuron_server.harness.probe import device_environment, get, get_json, gpu_count
from neuron_server.process.program import Program, lacks_cuda
from neuron_server.process.supervisor import Launch
from neuron_server.weights.files import gguf_file, local_path, repository, size_mb
from neuron_server.weights.index import find_weights

CAPABILITIES = EngineCapabilities(
    engine="mistralrs",
    traits=MISTRALRS,
    routes=frozenset(
        {
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
            "/v1/messages/count_tokens",
        }
    ),
    exclusive_when_parallel=True,
)
_INFLIGHT_METRICS = (
    "mistralrs_sequences_running",
    "mistralrs_sequences_waiting",
    "mistralrs_requests_pending_admission",
)
_CUDA_CONTEXT_MB = 800
_MIN_KV_CACHE_MB = 256
_DEFAULT_SEQUENCES = 32
"""Default of --max-seqs."""
_UNQUANTIZED_BITS = 16


class MistralrsHarness:
    """Safetensors and GGUF models with mistral.rs's own server."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = CAPABILITIES
        self._env = entry.env
        self._http = http
        self._device_ids = entry.device_ids
        self._weights_mb: dict[tuple[str | None, ...], int] = {}
        self._program = Program(
            "mistralrs",
            entry.binary,
            "serve",
            "--help",
            assumed_flags=frozenset({"--no-ui", "--quant"}),
        )

    @property
    def program(self) -> str | None:
        """Path of mistralrs, if it is installed."""
        return self._program.path

    @property
    def missing_reason(self) -> str | None:
        """Why mistralrs can't be run, and what to do about it; None if it can."""
        return self._program.missing_reason

    async def prepare(self) -> None:
        """Read the flags that this build supports."""
        await self._program.inspect()

    async def cpu_only_reason(self) -> str | None:
        """Check the libraries that it links, because `mistralrs doctor` accesses the network."""
        path = self._program.path
        if path is None or not await lacks_cuda(path):
            return None
        return (
            f"{path} links no CUDA library, so models would run on the CPU: "
            "install a build with the cuda feature"
        )

    def served_as(self, spec: LoadSpec) -> str | None:
        """Return "default", which always names the model of the process, unless -m is the model's name."""
        return None if _model_argument(spec) == spec.model_id else "default"

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """See `Harness.weights_mb`."""
        path = local_path(spec)
        return None if path is None else size_mb(path)

    async def estimate(
        self,
        spec: LoadSpec,
        kind: DeviceKind,
        devices: Sequence[Device],  # noqa: ARG002 - required by the protocol
    ) -> MemoryEstimate | None:
        """Return the weights, as quantized at load, and the KV cache; None for weights that are not found."""
        index = await find_weights(spec, self._env)
        if index is None:
            return None
        weights = index.weights_mb
        if spec.quant and not index.is_gguf:
            weights = weights * (int(_quantization_level(spec.quant)) + 1) // _UNQUANTIZED_BITS
        self._weights_mb[_weights_key(spec)] = weights
        overhead = _CUDA_CONTEXT_MB if kind is DeviceKind.CUDA else _MIN_KV_CACHE_MB
        return estimate_memory(spec, replace(index, weights_mb=weights), overhead_mb=overhead)

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """Return the command of a server."""
        argv = [self._program.require_path(), "serve", "--host", host, "-p", str(port)]
        argv += self._program.if_supported("--no-ui")
        model = _model_argument(spec) if local_path(spec) else repository(spec)
        argv += ["-m", model, *self._format(spec)]
        if spec.parallel is not None:
            argv += ["--max-seqs", str(spec.parallel)]
        if gpu_count(devices):
            argv += self._kv_cache(spec)
        else:
            argv.append("--cpu")
        log_settings = {"RUST_LOG": "info", "NO_COLOR": "1"}
        environment = (
            device_environment(devices, self._device_ids) | log_settings | self._env | spec.env
        )
        return Launch(argv=(*argv, *spec.args), env=environment)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:
        """Probe /health, which refuses connections while loading; the model must then be listed as loaded."""
        response = await get(self._http, url + "/health")
        if response is None or response.status_code != 200:
            return Probe(ready=False, stage="loading")
        listed = await get_json(self._http, url + "/v1/models")
        if True not in parse_models(listed).values():
            return Probe(ready=False, stage="loading")
        version = await fetch_version(self._http, url)
        if version is None and self._program.version is not None:  # 0.8 does not report it
            version = f"mistral.rs {self._program.version}"
        return Probe(ready=True, parallel=spec.parallel or _DEFAULT_SEQUENCES, version=version)

    async def in_flight(self, url: str) -> int | None:
        """Return the requests in its metrics, whose series appear with the first request."""
        response = await get(self._http, url + "/metrics")
        if response is None or response.status_code != 200:
            return None
        return sum_series(response.text, _INFLIGHT_METRICS)

    def _format(self, spec: LoadSpec) -> list[str]:
        if _is_gguf(spec):
            format_flag = self._program.if_supported("--format", "gguf")
            return [*format_flag, "-f", gguf_file(spec).name]
        if spec.file is not None:
            return ["-f", spec.file]
        if spec.quant is None:
            return []
        level = _quantization_level(spec.quant)
        return self._program.if_supported("--quant", level) or ["--isq", level]

    def _kv_cache(self, spec: LoadSpec) -> list[str]:
        weights = self._weights_mb.get(_weights_key(spec), self.weights_mb(spec))
        if spec.vram_mb is None or weights is None:
            return ["--pa-context-len", str(spec.context)] if spec.context else []
        share = weights // max(1, spec.tensor_parallel)
        budget = spec.vram_mb - share * 11 // 10 - _CUDA_CONTEXT_MB
        return ["--pa-memory-mb", str(max(budget, _MIN_KV_CACHE_MB))]


def parse_models(listed: dict[str, object] | None) -> dict[str, bool]:
    """Return the models of GET /v1/models and whether each is loaded.

    The synthetic "default" is ignored. An id that is listed twice, after a failed reload, is loaded only if all its
    entries are. Adapters, which have a parent, are not models.
    """
    data = (listed or {}).get("data")
    loaded: dict[str, bool] = {}
    for entry in data if isinstance(data, list) else ():
        name, status = entry.get("id"), entry.get("status")
        if not isinstance(name, str) or name == "default" or "parent" in entry:
            continue
        loaded[name] = loaded.get(name, True) and status in {None, "loaded"}
    return loaded


def started_at(listed: dict[str, object]) -> int | None:
    """Return the Unix seconds at which the engine started, which is `created` of all models in GET /v1/models."""
    data = listed.get("data")
    created = [entry.get("created") for entry in data] if isinstance(data, list) else []
    return next((at for at in created if isinstance(at, int)), None)


async def fetch_version(http: httpx.AsyncClient, url: str) -> str | None:
    """Return the engine's version; None if it does not report one."""
    info = await get_json(http, url + "/v1/system/info")
    build = (info or {}).get("build", {})
    return f"mistral.rs {build['version']}" if "version" in build else None


def _model_argument(spec: LoadSpec) -> str:
    """Return the value of -m: the directory of a GGUF file, or else the directory or repository itself."""
    if local_path(spec) is None:
        return spec.source or spec.model_id
    return str(gguf_file(spec).parent if _is_gguf(spec) else local_path(spec))


def _weights_key(spec: LoadSpec) -> tuple[str | None, ...]:
    return (spec.source or spec.model_id, spec.file, spec.quant)


def _is_gguf(spec: LoadSpec) -> bool:
    path = local_path(spec)
    return path is not None and (path.suffix == ".gguf" or any(path.glob("*.gguf")))


def _quantization_level(quant: str) -> str:
    """Return the number of bits in a name such as "Q4_K_M"; --quant and --isq take a level, not a GGUF type."""
    if digit := re.search(r"\d", quant):
        return digit[0]
    raise BadRequest(f"mistral.rs has no quantization {quant!r}", param="quant")
