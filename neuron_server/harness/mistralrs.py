"""mistral.rs: one `mistralrs serve` per instance.

Facts (0.8, 0.9): models can't be added at run time, hence a process each; the socket opens only after the load; there
is no name to serve a model under, so a local path is asked for as "default"; workers of tensor parallelism outlive
their head and share one socket name a host, so a host runs one such engine at a time and the whole group is killed; by
default it takes 90% of the card for its KV cache; --pa-memory-mb gives it a size instead and fails fast. 0.8 has its
page on request, where 0.9 has --no-ui; knows no --quant, and wants to be told that a file is GGUF. So --help is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import MISTRALRS
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, Launch, Probe
from neuron_server.harness.command import sum_series
from neuron_server.harness.probe import device_environment, get, get_json, gpu_count
from neuron_server.harness.weights import gguf_file, local_path, repository, size_mb
from neuron_server.process.program import Program, lacks_cuda

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
_RUNNING = (
    "mistralrs_sequences_running",
    "mistralrs_sequences_waiting",
    "mistralrs_requests_pending_admission",
)
_CUDA_CONTEXT_MB = 800
_LEAST_KV_MB = 256


class MistralrsHarness:
    """Safetensors and GGUF models through mistral.rs's own server."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = CAPABILITIES
        self._env = entry.env
        self._http = http
        self._program = Program(
            "mistralrs",
            entry.binary,
            "serve",
            "--help",
            assumed_flags=frozenset({"--no-ui", "--quant"}),
        )

    @property
    def program(self) -> str | None:
        """Path of mistralrs, where there is one."""
        return self._program.path

    @property
    def missing(self) -> str | None:
        """See `Harness.missing`."""
        return self._program.missing

    async def prepare(self) -> None:
        """Read the flags that this build has."""
        await self._program.inspect()

    async def without_gpu(self) -> str | None:
        """From what it links: its `doctor` asks the network, too."""
        path = self._program.path
        if path is None or not await lacks_cuda(path):
            return None
        return (
            f"{path} links no CUDA, so models are loaded on the processor: "
            "install a build with the feature cuda"
        )

    def served_as(self, spec: LoadSpec) -> str | None:
        """Its id is what -m was given; "default" is always the one model of the process."""
        return None if _model_argument(spec) == spec.model_id else "default"

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """See `Harness.weights_mb`."""
        path = local_path(spec)
        return None if path is None else size_mb(path)

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:
        """The weights' share and a third for the KV cache; unknown for a repository or a quantisation at load."""
        weights = self.weights_mb(spec)
        if not weights or (spec.quant and not _is_gguf(spec)):
            return None
        overhead = _CUDA_CONTEXT_MB if kind is DeviceKind.CUDA else _LEAST_KV_MB
        return weights * 4 // (3 * spec.tensor_parallel) + overhead

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """See `ProcessHarness.launch`."""
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
        plain = {"RUST_LOG": "info", "NO_COLOR": "1"}
        environment = device_environment(devices) | plain | self._env | spec.env
        return Launch(argv=(*argv, *spec.args), env=environment)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:  # noqa: ARG002 - the protocol's
        """Refused until it is loaded; then the model must be listed as loaded too."""
        response = await get(self._http, url + "/health")
        if response is None or response.status_code != 200:
            return Probe(ready=False, stage="loading")
        listed = await get_json(self._http, url + "/v1/models")
        if True not in models_of(listed).values():
            return Probe(ready=False, stage="loading")
        version = await version_of(self._http, url)
        if version is None and self._program.version is not None:  # 0.8 does not tell
            version = f"mistral.rs {self._program.version}"
        return Probe(ready=True, version=version)

    async def in_flight(self, url: str) -> int | None:
        """From its metrics, whose series appear with the first request."""
        response = await get(self._http, url + "/metrics")
        if response is None or response.status_code != 200:
            return None
        return sum_series(response.text, _RUNNING)

    def _format(self, spec: LoadSpec) -> list[str]:
        if _is_gguf(spec):
            told = self._program.if_supported("--format", "gguf")
            return [*told, "-f", gguf_file(spec).name]
        if spec.file is not None:
            return ["-f", spec.file]
        if spec.quant is None:
            return []
        level = _level(spec.quant)
        return self._program.if_supported("--quant", level) or ["--isq", level]

    def _kv_cache(self, spec: LoadSpec) -> list[str]:
        weights = self.weights_mb(spec)
        if spec.vram_mb is None or weights is None:
            return ["--pa-context-len", str(spec.context)] if spec.context else []
        grant = weights // max(1, spec.tensor_parallel)
        budget = spec.vram_mb - grant * 11 // 10 - _CUDA_CONTEXT_MB
        return ["--pa-memory-mb", str(max(budget, _LEAST_KV_MB))]


def models_of(listed: dict[str, object] | None) -> dict[str, bool]:
    """The models of GET /v1/models and whether each is loaded.

    The synthetic "default" is dropped; an id that is listed twice (a quirk of a failed reload) counts by its worst.
    Adapters have a parent and are not models of their own.
    """
    data = (listed or {}).get("data")
    found: dict[str, bool] = {}
    for entry in data if isinstance(data, list) else ():
        name, status = entry.get("id"), entry.get("status")
        if not isinstance(name, str) or name == "default" or "parent" in entry:
            continue
        found[name] = found.get(name, True) and status in {None, "loaded"}
    return found


def started_of(listed: dict[str, object]) -> int | None:
    """Unix seconds at which the engine of GET /v1/models started: it gives that to all its models as `created`."""
    data = listed.get("data")
    created = [entry.get("created") for entry in data] if isinstance(data, list) else []
    return next((at for at in created if isinstance(at, int)), None)


async def version_of(http: httpx.AsyncClient, url: str) -> str | None:
    """What the engine calls itself."""
    info = await get_json(http, url + "/v1/system/info")
    build = (info or {}).get("build", {})
    return f"mistral.rs {build['version']}" if "version" in build else None


def _model_argument(spec: LoadSpec) -> str:
    """What -m gets: a directory for GGUF files, else the directory or repository itself."""
    if local_path(spec) is None:
        return spec.source or spec.model_id
    return str(gguf_file(spec).parent if _is_gguf(spec) else local_path(spec))


def _is_gguf(spec: LoadSpec) -> bool:
    path = local_path(spec)
    return path is not None and (path.suffix == ".gguf" or any(path.glob("*.gguf")))


def _level(quant: str) -> str:
    """The number of bits in a name such as "Q4_K_M"; both flags take a level, not a GGUF type."""
    if found := re.search(r"\d", quant):
        return found[0]
    raise BadRequest(f"mistral.rs has no quantisation {quant!r}", param="quant")
