"""The harness for any OpenAI-compatible server, with a command template and presets for common engines.

vLLM listens once the engine is ready, answers /health with 503 after the engine died, and would log each poll of its
metrics, one per second; on SIGTERM it waits for its connections forever while its EngineCore is gone, so an unload that
could not drain ends with SIGKILL. SGLang's /health runs a generation unless its environment disables that, and only
0.5.20 and later have /ready; it would log each poll, too; it notices SIGTERM within five seconds and then finishes its
requests. ComfyUI has its own API, answers /system_stats as soon as it listens, and handles SIGINT only between two
nodes of a graph; its location varies, so its command has no default.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx

from cortex_common.config.neuron import COMMAND_FIELDS, HarnessEntry, command_fields
from cortex_common.errors import ConfigError
from cortex_common.schema.engine_traits import OPENAI, SGLANG, VLLM, EngineTraits
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, MemoryEstimate, Probe
from neuron_server.harness.estimates import estimate_memory
from neuron_server.harness.keys import KEY_FIELD, KEY_FILE_FIELD
from neuron_server.harness.probe import device_environment, get, get_json, pci_ordinal
from neuron_server.process.supervisor import Launch
from neuron_server.weights.files import local_path, size_mb
from neuron_server.weights.index import find_weights

_LOADING = 503
# A timestamp can follow the value.
_SAMPLE = re.compile(
    r"^([^\s{#]+)(?:\{.*\})?[ \t]+(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?=\s|$)", re.MULTILINE
)
_FIELD = re.compile(r"\{(" + "|".join(COMMAND_FIELDS) + r")\}")
_OPENAI = ("/v1/chat/completions", "/v1/completions")
_DIALECTS = (
    *_OPENAI,
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
)


@dataclass(frozen=True, slots=True)
class Preset:
    """The defaults for an engine.

    Attributes:
        command: see `HarnessEntry.command`.
        version_path: path that answers {"version": ...}, if there is one.
        running_metrics: names of the /metrics series that count running and waiting requests.
        queue_path: path that answers {"exec_info": {"queue_remaining": ...}}, if there is one.
        example: an example command, if there is no default.
        parallel: requests that it processes at the same time by default.
        parallel_path: path that answers {"max_running_requests": ...}, if there is one.
        sizes_itself, grows: see `EngineCapabilities`; an unknown engine is assumed to do both.
        overhead_mb: GPU memory in addition to weights and KV cache.
    """

    command: tuple[str, ...] = ()
    health_path: str = "/health"
    stop_signal: str = "TERM"
    routes: tuple[str, ...] = _OPENAI
    env: tuple[tuple[str, str], ...] = ()
    version_path: str | None = None
    running_metrics: tuple[str, ...] = ()
    queue_path: str | None = None
    example: tuple[str, ...] = ()
    kinds: tuple[DeviceKind, ...] = (DeviceKind.CUDA, DeviceKind.CPU)
    traits: EngineTraits = OPENAI
    parallel: int | None = None
    parallel_path: str | None = None
    sizes_itself: bool = True
    grows: bool = True
    overhead_mb: int = 0


_PRESETS: Mapping[str, Preset] = {
    "vllm": Preset(
        command=(
            "vllm",
            "serve",
            "{source}",
            "--served-model-name",
            "{model}",
            "--host",
            "{host}",
            "--port",
            "{port}",
            "--tensor-parallel-size",
            "{device_count}",
            "--max-model-len",
            "{context}",
            "--max-num-seqs",
            "{parallel}",
            "--quantization",
            "{quant}",
            "--gpu-memory-utilization",
            "{vram_share}",
            "--disable-uvicorn-access-log",
        ),
        env=(("VLLM_API_KEY", KEY_FIELD),),
        routes=_DIALECTS,
        version_path="/version",
        traits=VLLM,
        parallel=256,
        grows=False,
        overhead_mb=2000,  # CUDA context, graphs and activations
        running_metrics=("vllm:num_requests_running", "vllm:num_requests_waiting"),
        kinds=(DeviceKind.CUDA,),
    ),
    "sglang": Preset(
        command=(
            "python3",
            "-m",
            "sglang.launch_server",
            "--model-path",
            "{source}",
            "--served-model-name",
            "{model}",
            "--host",
            "{host}",
            "--port",
            "{port}",
            "--tp-size",
            "{device_count}",
            "--context-length",
            "{context}",
            "--max-running-requests",
            "{parallel}",
            "--quantization",
            "{quant}",
            "--enable-metrics",
            "--log-level-http",
            "warning",
            "--api-key",
            KEY_FIELD,
        ),
        env=(("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "false"),),
        routes=_DIALECTS,
        traits=SGLANG,
        parallel_path="/server_info",
        grows=False,
        overhead_mb=2000,
        running_metrics=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        kinds=(DeviceKind.CUDA,),
    ),
    "comfyui": Preset(
        example=(
            "/opt/comfyui/.venv/bin/python",
            "/opt/comfyui/main.py",
            "--listen",
            "{host}",
            "--port",
            "{port}",
            "--disable-auto-launch",
        ),
        health_path="/system_stats",
        stop_signal="INT",
        queue_path="/prompt",
        routes=("/prompt", "/queue", "/history", "/view", "/ws", "/object_info"),
    ),
}


class CommandHarness:
    """Starts an engine with a command line, and probes it with an HTTP path.

    Raises:
        ConfigError: neither the entry nor its preset has a command.
    """

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        preset = _PRESETS[entry.preset] if entry.preset else Preset()
        self.name = entry.name
        self._template = entry.command or preset.command
        _check_command(entry.name, self._template, preset.example)
        self._preset = preset
        self._stop_command = entry.stop_command
        self._pid_command = entry.pid_command
        self._binary = entry.binary
        self._health_path = "/" + (entry.health_path or preset.health_path).lstrip("/")
        self._running_metrics = entry.running_metrics or preset.running_metrics
        self._env = dict(preset.env) | entry.env
        self._http = http
        self._device_ids = entry.device_ids
        self.capabilities = EngineCapabilities(
            engine=entry.preset or "command",
            traits=preset.traits,
            routes=frozenset(entry.routes or preset.routes),
            kinds=preset.kinds,
            takes_key=_has_key_field((*self._template, *self._env.values())),
            stop_signal=signal.Signals[f"SIG{entry.stop_signal or preset.stop_signal}"],
            sizes_itself=preset.sizes_itself,
            grows=preset.grows if entry.grows is None else entry.grows,
        )

    @property
    def program(self) -> str | None:
        """Path of the command's program, if it is found."""
        return shutil.which(str(self._binary or self._template[0]))

    @property
    def missing_reason(self) -> str | None:
        """That the command's program is not found; None if it is."""
        program = self._binary or self._template[0]
        return (
            None
            if self.program
            else f"{program} is not an executable program: set command of the harness in neuron.toml"
        )

    async def prepare(self) -> None:
        """Do nothing: the program is not inspected."""

    async def cpu_only_reason(self) -> str | None:
        """Return None: this is unknown for these engines."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - required by the protocol
        """Return None: the engine serves the model under its own name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """Return the MiB of the source; None if it is not on this host."""
        path = local_path(spec)
        return None if path is None else size_mb(path)

    async def estimate(
        self,
        spec: LoadSpec,
        kind: DeviceKind,
        devices: Sequence[Device],  # noqa: ARG002 - required by the protocol
    ) -> MemoryEstimate | None:
        """Return the weights and the KV cache; None for weights that are not found."""
        index = await find_weights(spec, self._env)
        overhead = self._preset.overhead_mb if kind is DeviceKind.CUDA else 0
        return None if index is None else estimate_memory(spec, index, overhead_mb=overhead)

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """Return the command, filled in from the template."""
        values = _values(spec, devices, host, port)
        argv = list(fill(self._template, values))
        if self._binary is not None:
            argv[0] = str(self._binary)
        env = {name: _fill_text(value, values) for name, value in self._env.items()}
        return Launch(
            argv=(*argv, *spec.args),
            env=device_environment(devices, self._device_ids) | env | spec.env,
            stop_argv=tuple(fill(self._stop_command, values)),
            pid_argv=tuple(fill(self._pid_command, values)),
        )

    async def probe(self, spec: LoadSpec, url: str) -> Probe:
        """Probe the health path; the engine is ready once it answers 200."""
        response = await get(self._http, url + self._health_path)
        if response is None:
            return Probe(ready=False, stage="starting")
        if response.status_code == _LOADING:
            return Probe(ready=False, stage="loading")
        if response.status_code != 200:
            stage = f"answering {response.status_code} at {self._health_path}"
            return Probe(ready=False, stage=stage)
        return Probe(
            ready=True,
            context=await self._context(spec, url),
            parallel=spec.parallel or await self._parallel(url),
            version=await self._version(url),
        )

    async def in_flight(self, url: str) -> int | None:
        """Return the requests in the engine's metrics or queue; None if neither is configured."""
        if self._preset.queue_path is not None:
            queue = await get_json(self._http, url + self._preset.queue_path)
            match queue:
                case {"exec_info": {"queue_remaining": int(remaining)}}:
                    return remaining
            return None
        if not self._running_metrics:
            return None
        response = await get(self._http, url + "/metrics")
        if response is None or response.status_code != 200:
            return None
        return sum_series(response.text, self._running_metrics)

    async def _context(self, spec: LoadSpec, url: str) -> int | None:
        if not any(route.startswith("/v1/") for route in self.capabilities.routes):
            return None
        models = await get_json(self._http, url + "/v1/models")
        match models:
            case {"data": [{"max_model_len": int(length)}, *_]}:
                return length
        return spec.context

    async def _parallel(self, url: str) -> int | None:
        """Return the requests that an engine processes at the same time by default, or as it reports."""
        if self._preset.parallel_path is not None:
            info = await get_json(self._http, url + self._preset.parallel_path)
            match info:
                case {"max_running_requests": int(number)} if number > 0:
                    return number
        return self._preset.parallel

    async def _version(self, url: str) -> str | None:
        if self._preset.version_path is None:
            return None
        info = await get_json(self._http, url + self._preset.version_path)
        return f"{self.name} {info['version']}" if info and "version" in info else None


def fill(template: Sequence[str], values: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the arguments of a command template with its fields filled in.

    An argument with an unset value is omitted, together with the flag before it.
    """
    arguments: list[str] = []
    for part in template:
        fields = command_fields(part)
        if any(values[name] is None for name in fields):
            if arguments and arguments[-1].startswith("-") and not part.startswith("-"):
                arguments.pop()
        else:
            arguments.append(part.format_map(values))
    yield from arguments


def _has_key_field(texts: Iterable[str]) -> bool:
    return any(KEY_FIELD in text or KEY_FILE_FIELD in text for text in texts)


def _fill_text(text: str, values: Mapping[str, str | None]) -> str:
    """Return the text with its fields filled in, unset ones as empty; other braces, as in JSON, are kept."""
    return _FIELD.sub(lambda field: values[field[1]] or "", text)


def sum_series(metrics: str, names: Sequence[str]) -> int:
    """Return the sum of Prometheus series over all labels; values that are not finite numbers are ignored."""
    samples = ((m[1], m[2]) for m in _SAMPLE.finditer(metrics))
    values = (float(value) for name, value in samples if name in names)
    return round(sum(value for value in values if math.isfinite(value)))


def _check_command(name: str, template: Sequence[str], example: Sequence[str]) -> None:
    if not template and example:
        raise ConfigError(
            f"harness {name!r}: this preset needs a command",
            hints=(f"command = {json.dumps(example)}",),
        )


def _values(
    spec: LoadSpec, devices: Sequence[Device], host: str, port: int
) -> dict[str, str | None]:
    def text(value: object) -> str | None:
        return None if value is None else str(value)

    return {
        "model": spec.model_id,
        "source": spec.source or spec.model_id,
        "file": spec.file,
        "quant": spec.quant,
        "host": host,
        "port": str(port),
        "devices": ",".join(str(pci_ordinal(d)) for d in devices),
        "device_uuids": ",".join(d.uuid for d in devices),
        "device_count": str(max(1, len(devices))),
        "context": text(spec.context),
        "parallel": text(spec.parallel),
        "vram_mb": text(spec.vram_mb),
        "api_key": KEY_FIELD,
        "api_key_file": KEY_FILE_FIELD,
        "vram_share": _vram_share(spec, devices),
    }


def _vram_share(spec: LoadSpec, devices: Sequence[Device]) -> str | None:
    """Return `vram_mb` as a share of the smallest device, rounded down, such as "0.895"; None if it is not set."""
    smallest = min((d.vram_total_mb for d in devices if d.kind is DeviceKind.CUDA), default=0)
    if spec.vram_mb is None or not smallest:
        return None
    return f"{spec.vram_mb * 1000 // smallest / 1000:.3f}"
