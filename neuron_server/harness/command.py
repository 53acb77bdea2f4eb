"""Any OpenAI-compatible server from a command template, with presets for the common ones.

Facts about the presets: vLLM opens its socket once the engine is up, answers /health with 503 when it died, and would
log each of our looks at its metrics, one a second; told to end, it waits for its connections for ever, its EngineCore
gone, so an unload that could not drain ends with a kill. SGLang's /health runs a generation unless its environment says
otherwise, and only 0.5.20 and later have /ready; it would log our looks, too; told to end, it notices within five
seconds, and then answers to the end what it was asked. ComfyUI has an API of its own, answers /system_stats as soon as
it listens, and hears SIGINT only between two nodes of a graph; it is a directory with a main.py, wherever that is, so
its command has no default.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx

from cortex_common.config.neuron import COMMAND_FIELDS, HarnessEntry, command_fields
from cortex_common.errors import ConfigError
from cortex_common.schema.engine_traits import OPENAI, SGLANG, VLLM, EngineTraits
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import EngineCapabilities, Launch, Probe
from neuron_server.harness.probe import device_environment, get, get_json
from neuron_server.harness.weights import local_path, size_mb

_LOADING = 503
# A timestamp may follow.
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
    """What is known of an engine.

    Attributes:
        command: see `HarnessEntry.command`.
        version_path: answers {"version": ...}, where there is such a path.
        running_metrics: names of the /metrics series that count requests under way and waiting.
        queue_path: answers {"exec_info": {"queue_remaining": ...}}, where there is such a path.
        example: a command for people, where there is no default.
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
        routes=_DIALECTS,
        version_path="/version",
        traits=VLLM,
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
        ),
        env=(("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "false"),),
        routes=_DIALECTS,
        traits=SGLANG,
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
    """An engine that a command line starts and an HTTP path shows to be ready.

    Raises:
        ConfigError: the entry has no command, and its preset none either.
    """

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        preset = _PRESETS[entry.preset] if entry.preset else Preset()
        self.name = entry.name
        self._template = entry.command or preset.command
        _check(entry.name, self._template, preset.example)
        self._preset = preset
        self._binary = entry.binary
        self._health_path = "/" + (entry.health_path or preset.health_path).lstrip("/")
        self._running_metrics = entry.running_metrics or preset.running_metrics
        self._env = dict(preset.env) | entry.env
        self._http = http
        self.capabilities = EngineCapabilities(
            engine=entry.preset or "command",
            traits=preset.traits,
            routes=frozenset(entry.routes or preset.routes),
            kinds=preset.kinds,
            stop_signal=signal.Signals[f"SIG{entry.stop_signal or preset.stop_signal}"],
        )

    @property
    def program(self) -> str | None:
        """The first word of the command, where it is found."""
        return shutil.which(str(self._binary or self._template[0]))

    @property
    def missing(self) -> str | None:
        """The first word of the command."""
        wanted = self._binary or self._template[0]
        return (
            None
            if self.program
            else f"there is no program {wanted} that may be run: set command of the harness in neuron.toml"
        )

    async def prepare(self) -> None:
        """Nothing to look at."""

    async def without_gpu(self) -> str | None:
        """Not known of such engines."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - the protocol's
        """Under its own name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """Known when the source is on this host."""
        path = local_path(spec)
        return None if path is None else size_mb(path)

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:  # noqa: ARG002 - the protocol's
        """The weights' share of each device and a third more; unknown engines and remote weights are not known."""
        weights = self.weights_mb(spec)
        return None if not weights else weights * 4 // (3 * spec.tensor_parallel)

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """See `Harness.launch`."""
        values = _values(spec, devices, host, port)
        argv = list(fill(self._template, values))
        if self._binary is not None:
            argv[0] = str(self._binary)
        own = {name: _filled(value, values) for name, value in self._env.items()}
        return Launch(argv=(*argv, *spec.args), env=device_environment(devices) | own | spec.env)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:
        """Ready once the health path answers 200."""
        response = await get(self._http, url + self._health_path)
        if response is None:
            return Probe(ready=False, stage="starting")
        if response.status_code == _LOADING:
            return Probe(ready=False, stage="loading")
        if response.status_code != 200:
            said = f"{response.status_code} at {self._health_path}"
            return Probe(ready=False, stage=f"answering {said}")
        return Probe(
            ready=True, context=await self._context(spec, url), version=await self._version(url)
        )

    async def in_flight(self, url: str) -> int | None:
        """From the engine's metrics or queue, where they are known."""
        if self._preset.queue_path is not None:
            queue = await get_json(self._http, url + self._preset.queue_path)
            match queue:
                case {"exec_info": {"queue_remaining": int(left)}}:
                    return left
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
            case {"data": [{"max_model_len": int(told)}, *_]}:
                return told
        return spec.context

    async def _version(self, url: str) -> str | None:
        if self._preset.version_path is None:
            return None
        found = await get_json(self._http, url + self._preset.version_path)
        return f"{self.name} {found['version']}" if found and "version" in found else None


def fill(template: Sequence[str], values: Mapping[str, str | None]) -> Iterator[str]:
    """The command line of a template.

    An argument that needs an unset value is left out, together with the flag before it.
    """
    kept: list[str] = []
    for part in template:
        wanted = command_fields(part)
        if any(values[name] is None for name in wanted):
            if kept and kept[-1].startswith("-") and not part.startswith("-"):
                kept.pop()
        else:
            kept.append(part.format_map(values))
    yield from kept


def _filled(text: str, values: Mapping[str, str | None]) -> str:
    """With its fields replaced, by nothing where they are not set; other braces may be anything, such as JSON."""
    return _FIELD.sub(lambda field: values[field[1]] or "", text)


def sum_series(metrics: str, names: Sequence[str]) -> int:
    """The sum of some Prometheus series over all their labels; what is no number counts as nothing."""
    found = ((m[1], m[2]) for m in _SAMPLE.finditer(metrics))
    return round(sum(float(value) for name, value in found if name in names))


def _check(name: str, template: Sequence[str], example: Sequence[str]) -> None:
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
        "devices": ",".join(str(d.index) for d in devices),
        "device_count": str(max(1, len(devices))),
        "context": text(spec.context),
        "parallel": text(spec.parallel),
        "vram_mb": text(spec.vram_mb),
        "vram_share": _share(spec, devices),
    }


def _share(spec: LoadSpec, devices: Sequence[Device]) -> str | None:
    """What `vram_mb` is of the smallest device, rounded down: "0.895"; None where it is not set."""
    smallest = min((d.vram_total_mb for d in devices if d.kind is DeviceKind.CUDA), default=0)
    if spec.vram_mb is None or not smallest:
        return None
    return f"{spec.vram_mb * 1000 // smallest / 1000:.3f}"
