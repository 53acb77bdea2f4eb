"""neuron.toml: a GPU host's settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from cortex_common.config.section import Address, Section


class NeuronSection(Section):
    """[neuron]: where it listens and keeps its records."""

    listen: Address = "127.0.0.1:9090"
    """Address of its API. Use the host's private address (a WireGuard mesh, say) to join a fleet."""

    state_dir: Path = Path("/var/lib/cortex/neuron")
    """Where records of running engines and their logs are kept."""


class CpuSection(Section):
    """[cpu]: whether the host's processor and RAM are offered as a device."""

    offer: bool = False
    """Offer a device of kind cpu."""

    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """MiB of RAM that engines may use. Default: all that the host has, less its headroom."""


class HarnessEntry(Section):
    """[[harnesses]]: one kind of engine that this host can run."""

    name: str
    """Name that profiles refer to: embedded, llamacpp, mistralrs, ..."""

    binary: Path | None = None
    """The engine's program. Default: found on PATH."""

    port_range: tuple[int, int] = (8100, 8199)
    """First and last loopback port for its engines."""

    @field_validator("port_range")
    @classmethod
    def _in_order(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= ports[0] <= ports[1] <= 65535:
            raise ValueError(f"{list(ports)} is not a first and a last port")
        return ports


class NeuronConfig(Section):
    """All of neuron.toml."""

    neuron: NeuronSection = NeuronSection()
    cpu: CpuSection = CpuSection()
    harnesses: tuple[HarnessEntry, ...] = ()

    @field_validator("harnesses")
    @classmethod
    def _names_differ(cls, harnesses: tuple[HarnessEntry, ...]) -> tuple[HarnessEntry, ...]:
        twice = [name for name, n in Counter(h.name for h in harnesses).items() if n > 1]
        if twice:
            raise ValueError(f"two harnesses are called {twice[0]!r}")
        return harnesses
