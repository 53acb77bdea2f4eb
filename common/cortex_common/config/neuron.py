"""neuron.toml: the settings of a GPU host."""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from cortex_common.config.access import TlsSection
from cortex_common.config.base import Address, BaseUrl, HostName, Section
from cortex_common.schema.bounds import Mib, PositiveSeconds, Seconds
from cortex_common.units import BYTES_PER_MIB, parse_size

Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""

HarnessKind = Literal["embedded", "llamacpp", "mistralrs", "attach", "command"]

COMMAND_FIELDS = frozenset(
    {
        "model",
        "source",
        "file",
        "quant",
        "host",
        "port",
        "devices",
        "device_count",
        "device_uuids",
        "context",
        "parallel",
        "vram_mb",
        "vram_share",
        "api_key",
        "api_key_file",
    }
)
"""The fields in braces that are replaced in the command of a harness."""


def command_fields(argument: str) -> list[str]:
    """Return the fields of one argument of a command.

    A conversion or format is included in the name, so that it does not match any known field.

    Raises:
        ValueError: a brace is unbalanced.
    """
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in string.Formatter().parse(argument)
        if name is not None
    ]


def parse_headroom_mib(text: str, total_mb: int) -> int:
    """Parse a headroom such as "512MiB" or "5%" into MiB, for a device of `total_mb` MiB.

    Raises:
        ValueError: the text is neither a size nor a percentage.
    """
    if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
        percent = float(match[1])
        if percent > 100:
            raise ValueError(f"{text!r} is more than 100%")
        return round(total_mb * percent / 100)
    return round(parse_size(text) / BYTES_PER_MIB)


def _headroom(text: str) -> str:
    parse_headroom_mib(text, 0)
    return text


Headroom = Annotated[str, AfterValidator(_headroom)]
"""A size like "512MiB", or a percentage of the device like "5%"."""


class NeuronSection(Section):
    """[neuron]: listener, state and shutdown."""

    listen: Address = "127.0.0.1:9090"
    """Address of the neuron's API. To join a fleet, use the host's private address, for example on a WireGuard mesh."""

    state_dir: Path = Path("/var/lib/cortex/neuron")
    """Directory for the records of running engines, and their logs."""

    on_stop: Literal["stop", "keep"] = "stop"
    """What happens to the engines when the neuron shuts down: "stop" drains and stops them, "keep" leaves them running
    for the next neuron process to adopt. The systemd unit sets "keep"."""

    drain_s: Seconds = 5.0
    """Seconds that requests in flight can continue when the neuron stops its engines."""

    relay_drain_s: Seconds = 150.0
    """Seconds that requests relayed through this neuron can continue when it shuts down; new ones are rejected
    meanwhile. A second signal cancels them. With systemd, keep this below TimeoutStopSec=."""

    cgroup: Path | None = None
    """Directory of a cgroup (v2) for this neuron. Each engine gets a cgroup below it, so that none of its processes
    survive it. Default: the cgroup that systemd delegates to the neuron's unit; without one, process groups are
    used."""

    token: Annotated[str, Field(min_length=1)] | None = None
    """Bearer token that callers must send. Prefer `token_file` or the environment variable. Default: a random token,
    which the neuron creates at its first start in the file `token` of `state_dir`."""

    token_file: Path | None = None
    """File that contains the token. A bare file name is looked up among systemd's credentials first."""

    allowed_hosts: tuple[HostName, ...] = ()
    """Names of this host that the Host header of requests can contain, beside its hostname, those in /etc/hosts, and
    IP addresses; such as "gpu1.example.org" or "*.example.org"."""

    engine_access: Literal["auto", "direct"] = "auto"
    """How requests reach the engines. "auto": directly if this neuron listens on loopback, else relayed through the
    neuron. "direct": engines listen on `engine_host`."""

    engine_host: str | None = None
    """Address that engines listen on with `engine_access = "direct"`."""

    @model_validator(mode="after")
    def _require_engine_host(self) -> NeuronSection:
        if self.engine_access == "direct" and self.engine_host is None:
            raise ValueError("engine_access 'direct' requires engine_host")
        return self


class CpuSection(Section):
    """[cpu]: whether the host's CPU and RAM are offered as a device."""

    offer: bool = False
    """Offer a device of kind "cpu"."""

    memory_mb: Annotated[Mib, Field(ge=1)] | None = None
    """MiB of RAM that engines can use. Default: all RAM of the host, minus `headroom`."""

    headroom: Headroom | None = None
    """RAM to keep free: "2GiB" or "10%". Default: 10%, or nothing if `memory_mb` is set."""


class DeviceEntry(Section):
    """[[devices]]: settings of one GPU."""

    uuid: str
    """UUID of the GPU, as printed by `nvidia-smi -L`."""

    headroom: Headroom | None = None
    """Memory to keep free on this GPU. Default: that of [memory]."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that model configs can require with `gpu_labels`."""

    cordon: bool = False
    """Place no new instances on this GPU."""


class MemorySection(Section):
    """[memory]: memory to keep free on every GPU."""

    headroom: Headroom = "512MiB"
    """Memory to keep free: "512MiB" or "5%". [[devices]] overrides it for one GPU."""


class HarnessEntry(Section):
    """[[harnesses]]: a kind of engine that this host can run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name that model configs refer to: embedded, llamacpp, mistralrs, ..."""

    kind: HarnessKind | None = None
    """Harness implementation. Default: the one with the same name."""

    binary: Path | None = None
    """Path of the engine's executable. Default: looked up on PATH."""

    port_range: tuple[Port, Port] = (8100, 8199)
    """First and last loopback port for its engines."""

    preset: Literal["vllm", "sglang", "comfyui"] | None = None
    """Kind "command": start with the settings for this engine. "comfyui" also requires `command`."""

    command: tuple[str, ...] = ()
    """Kind "command": executable and arguments. These fields are replaced: {model}, {source}, {file}, {quant}, {port},
    {host}, {devices} (indices in PCI bus order), {device_uuids}, {device_count}, {context}, {parallel}, {vram_mb}, and
    {vram_share} (`vram_mb` as a fraction of the device, such as 0.895), {api_key} (a random key for the instance,
    which requests will have as a bearer token) and {api_key_file} (a file with that key). An argument with a field that
    has no value is omitted, together with the option before it."""

    stop_command: tuple[str, ...] = ()
    """Kind "command": command that stops the engine, with the same fields, such as ["podman", "stop", "cortex-{port}"].
    It runs before the process of `command` is signalled."""

    pid_command: tuple[str, ...] = ()
    """Kind "command": command that prints the pid of an engine that runs in a container, with the same fields, such as
    ["podman", "inspect", "--format", "{{{{.State.Pid}}}}", "cortex-{port}"]. Memory and ports are attributed to it."""

    health_path: str | None = None
    """Kind "command": path that returns 200 once the engine is ready. Default: "/health"."""

    stop_signal: Literal["TERM", "INT", "QUIT"] | None = None
    """Kind "command": signal that stops the engine. Default: "TERM"."""

    routes: tuple[str, ...] = ()
    """Kind "command": OpenAI routes that the engine supports. Default: chat/completions and completions."""

    running_metrics: tuple[str, ...] = ()
    """Kind "command": metrics of its GET /metrics that count running and queued requests. With them, requests from
    other gateways and clients are included when an instance is drained. Default: those of the preset."""

    device_ids: Literal["uuid", "index"] = "uuid"
    """How CUDA_VISIBLE_DEVICES names the GPUs of an engine. "index" is for engines that can't read UUIDs; indices are
    in PCI bus order, which CUDA_DEVICE_ORDER sets."""

    grows: bool | None = None
    """Kind "command": whether an engine can allocate more memory after it is ready, like ComfyUI and Ollama. All of its
    granted memory then stays reserved. Default: no for the presets "vllm" and "sglang", else yes."""

    url: BaseUrl | None = None
    """Kind "attach": base URL of an engine that is not managed by this neuron."""

    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9@._\\:-]+\.service$")] | None = None
    """Kind "attach": systemd unit of that engine, which is started and restarted with systemctl."""

    load_timeout_s: PositiveSeconds | None = None
    """Seconds within which a load must finish. Default: derived from the size of the weights, and extended while the
    load makes progress."""

    stop_timeout_s: PositiveSeconds = 10.0
    """Seconds that an engine has to stop before it is killed."""

    health_interval_s: PositiveSeconds = 15.0
    """Seconds between health checks of a ready engine. It is restarted after three consecutive failures, unless it
    still delivers bytes to its clients. An attached engine is checked at least every two seconds."""

    token_probe: bool = True
    """Before an engine is restarted because it fails requests or is stuck, confirm this by requesting one token.
    Without it, five failed requests in a row are enough. Engines without a completions route are never asked."""

    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for its engines. Kind "command": the fields of `command` are replaced here too, such as
    OLLAMA_HOST = "{host}:{port}"."""

    @field_validator("command", "stop_command", "pid_command")
    @classmethod
    def _check_fields(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        unknown: set[str] = set()
        for argument in command:
            try:
                unknown.update(set(command_fields(argument)) - COMMAND_FIELDS)
            except ValueError:
                unknown.add(argument)
        if unknown:
            names, known = ", ".join(sorted(unknown)), ", ".join(sorted(COMMAND_FIELDS))
            raise ValueError(
                f"unknown fields: {names} (valid fields: {known}; double a literal brace)"
            )
        return command

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kind = self.kind or self.name
        if kind == "attach" and self.url is None:
            raise ValueError("kind 'attach' requires the engine's url")
        if kind == "command" and not self.command and self.preset is None:
            raise ValueError("kind 'command' requires a command or a preset")
        return self

    @field_validator("port_range")
    @classmethod
    def _check_port_range(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= ports[0] <= ports[1] <= 65535:
            raise ValueError(f"{list(ports)} is not a first and a last port")
        return ports


class NeuronConfig(Section):
    """The whole neuron.toml."""

    neuron: NeuronSection = NeuronSection()
    tls: TlsSection = TlsSection()
    cpu: CpuSection = CpuSection()
    memory: MemorySection = MemorySection()
    devices: tuple[DeviceEntry, ...] = ()
    harnesses: tuple[HarnessEntry, ...] = ()

    @field_validator("harnesses")
    @classmethod
    def _require_unique_names(cls, harnesses: tuple[HarnessEntry, ...]) -> tuple[HarnessEntry, ...]:
        duplicates = [name for name, n in Counter(h.name for h in harnesses).items() if n > 1]
        if duplicates:
            raise ValueError(f"two harnesses have the name {duplicates[0]!r}")
        return harnesses
