"""neuron.toml: a GPU host's settings."""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from cortex_common.config.access import TlsSection
from cortex_common.config.base import Address, BaseUrl, Section
from cortex_common.units import BYTES_PER_MIB, parse_size

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
        "context",
        "parallel",
        "vram_mb",
        "vram_share",
    }
)
"""What is replaced in a command, between braces."""


def command_fields(part: str) -> list[str]:
    """The fields of one argument of a command, with formats, which fit none: all are text or absent.

    Raises:
        ValueError: a brace stands alone in it.
    """
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in string.Formatter().parse(part)
        if name is not None
    ]


def headroom_mib(text: str, total_mb: int) -> int:
    """MiB that "512MiB" or "5%" leaves free of a device.

    Raises:
        ValueError: the text is neither a size nor a share.
    """
    if share := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
        percent = float(share[1])
        if percent > 100:
            raise ValueError(f"{text!r} is more than all of it")
        return round(total_mb * percent / 100)
    return round(parse_size(text) / BYTES_PER_MIB)


def _headroom(text: str) -> str:
    headroom_mib(text, 0)
    return text


Headroom = Annotated[str, AfterValidator(_headroom)]
"""A size like "512MiB", or a share of the device like "5%"."""


class NeuronSection(Section):
    """[neuron]: where it listens and keeps its records."""

    listen: Address = "127.0.0.1:9090"
    """Address of its API. Use the host's private address (a WireGuard mesh, say) to join a fleet."""

    state_dir: Path = Path("/var/lib/cortex/neuron")
    """Where records of running engines and their logs are kept."""

    on_stop: Literal["stop", "keep"] = "stop"
    """What happens to the engines when the neuron is told to stop: "stop" drains and ends them, "keep" leaves
    them running for the next neuron to adopt (what the systemd unit asks for)."""

    drain_s: Annotated[float, Field(ge=0)] = 5.0
    """Seconds that requests in flight may go on when the neuron stops its engines."""

    relay_drain_s: Annotated[float, Field(ge=0)] = 150.0
    """Seconds that requests which pass through this neuron may go on when it is told to stop; a second signal cuts
    them. Meanwhile it takes no new ones. With systemd, keep it below TimeoutStopSec=."""

    cgroup: Path | None = None
    """Directory of a cgroup (v2) of this neuron's own, below which each engine gets one, so that nothing of it can
    escape its end. Default: the one that systemd delegates to the neuron's unit; without one, process groups."""

    token: str | None = None
    """Bearer token that callers must send; better in a file or a variable. Default: none is asked for."""

    token_file: Path | None = None
    """File that holds the token; a bare name is looked up among systemd's credentials first."""

    engine_access: Literal["auto", "direct"] = "auto"
    """How requests reach engines. "auto": directly when this neuron listens on loopback, else relayed through it;
    "direct": engines listen on `engine_host` themselves."""

    engine_host: str | None = None
    """Address that engines listen on when `engine_access` is "direct"."""

    @model_validator(mode="after")
    def _direct_needs_host(self) -> NeuronSection:
        if self.engine_access == "direct" and self.engine_host is None:
            raise ValueError("engine_access 'direct' needs engine_host")
        return self


class CpuSection(Section):
    """[cpu]: whether the host's processor and RAM are offered as a device."""

    offer: bool = False
    """Offer a device of kind cpu."""

    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """MiB of RAM that engines may use. Default: all that the host has, less its headroom."""

    headroom: Headroom | None = None
    """RAM kept free: "2GiB" or "10%". Default: 10%, or nothing where `memory_mb` is set."""


class DeviceEntry(Section):
    """[[devices]]: settings of one GPU."""

    uuid: str
    """The driver's name for the card, as `nvidia-smi -L` shows it."""

    headroom: Headroom
    """VRAM kept free on this card."""


class MemorySection(Section):
    """[memory]: what is kept free on every GPU."""

    headroom: Headroom = "512MiB"
    """VRAM kept free: "512MiB" or "5%"; [[devices]] sets it for one card."""


class HarnessEntry(Section):
    """[[harnesses]]: one kind of engine that this host can run."""

    name: str
    """Name that profiles refer to: embedded, llamacpp, mistralrs, ..."""

    kind: HarnessKind | None = None
    """Which adapter drives it. Default: the one of the same name."""

    binary: Path | None = None
    """The engine's program. Default: found on PATH."""

    port_range: tuple[int, int] = (8100, 8199)
    """First and last loopback port for its engines."""

    preset: Literal["vllm", "sglang", "comfyui"] | None = None
    """Kind "command": start from the settings that this engine needs. "comfyui" needs `command`, too."""

    command: tuple[str, ...] = ()
    """Kind "command": program and arguments; {model}, {source}, {file}, {quant}, {port}, {host}, {devices},
    {device_count}, {context}, {parallel}, {vram_mb}, {vram_share} (what `vram_mb` is of the card, like 0.895) are
    replaced, and an argument that needs an unset value is left out together with the flag before it."""

    health_path: str | None = None
    """Kind "command": path that answers 200 once the engine is ready. Default: "/health"."""

    stop_signal: Literal["TERM", "INT", "QUIT"] | None = None
    """Kind "command": the signal that asks the engine to end. Default: "TERM"."""

    routes: tuple[str, ...] = ()
    """Kind "command": the OpenAI routes that it has. Default: chat/completions and completions."""

    running_metrics: tuple[str, ...] = ()
    """Kind "command": the series of its GET /metrics that count its requests, under way and waiting. By them a gateway
    knows of another's requests, and drains them too. Default: what the preset knows."""

    url: BaseUrl | None = None
    """Kind "attach": base URL of an engine that someone else runs."""

    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9@._\\:-]+\.service$")] | None = None
    """Kind "attach": the systemd unit behind it, started and restarted through systemctl."""

    load_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a load may take. Default: from the size of the weights, and longer while it makes progress."""

    stop_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that an engine may take to end before it is killed."""

    health_every_s: Annotated[float, Field(gt=0)] = 15.0
    """Seconds between looks at a ready engine; one that does not answer three times in a row is restarted.
    An attached engine is looked at every two seconds or more often."""

    env: dict[str, str] = Field(default_factory=dict)
    """Environment for all its engines. For kind `command`, {port} and the other fields of a command are replaced in it:
    OLLAMA_HOST = "{host}:{port}"."""

    @field_validator("command")
    @classmethod
    def _fields_known(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        unknown: set[str] = set()
        for part in command:
            try:
                unknown.update(set(command_fields(part)) - COMMAND_FIELDS)
            except ValueError:
                unknown.add(part)
        if unknown:
            shown, known = ", ".join(sorted(unknown)), ", ".join(sorted(COMMAND_FIELDS))
            raise ValueError(
                f"unknown fields: {shown} (fields are {known}; a brace itself is written twice)"
            )
        return command

    @model_validator(mode="after")
    def _can_be_driven(self) -> Self:
        kind = self.kind or self.name
        if kind == "attach" and self.url is None:
            raise ValueError("kind 'attach' needs the engine's url")
        if kind == "command" and not self.command and self.preset is None:
            raise ValueError("kind 'command' needs a command or a preset")
        return self

    @field_validator("port_range")
    @classmethod
    def _in_order(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= ports[0] <= ports[1] <= 65535:
            raise ValueError(f"{list(ports)} is not a first and a last port")
        return ports


class NeuronConfig(Section):
    """All of neuron.toml."""

    neuron: NeuronSection = NeuronSection()
    tls: TlsSection = TlsSection()
    cpu: CpuSection = CpuSection()
    memory: MemorySection = MemorySection()
    devices: tuple[DeviceEntry, ...] = ()
    harnesses: tuple[HarnessEntry, ...] = ()

    @field_validator("harnesses")
    @classmethod
    def _names_differ(cls, harnesses: tuple[HarnessEntry, ...]) -> tuple[HarnessEntry, ...]:
        twice = [name for name, n in Counter(h.name for h in harnesses).items() if n > 1]
        if twice:
            raise ValueError(f"two harnesses are called {twice[0]!r}")
        return harnesses
