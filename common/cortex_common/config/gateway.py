"""cortex.toml: the gateway's settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cortex_common.config.section import Address, BaseUrl, Section


class GatewaySection(Section):
    """[gateway]: where it listens and what it accepts."""

    listen: Address = "127.0.0.1:8000"
    """Address of the API. Use 0.0.0.0:8000 to serve other hosts."""

    metrics_listen: Address | None = "127.0.0.1:9100"
    """Address of the Prometheus metrics, a listener of its own."""

    models: Path = Path("models.toml")
    """The catalogue of models, relative to this file."""

    max_body_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    """Largest request body in MiB; beyond it the answer is 413."""

    cold_start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that a request waits for a model that is being loaded before it is told to come back later."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds to connect to an engine or a node before trying elsewhere."""

    first_byte_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds of silence before an engine's first byte. Long prompts compute for minutes without a byte."""

    idle_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds of silence inside an answer before the engine is given up."""


class EvictionSection(Section):
    """[eviction]: which models make room for others."""

    strategy: Literal["lru"] = "lru"
    """How victims are chosen: "lru" takes the one whose last request ended longest ago."""

    defrag_after_cycles: Annotated[int, Field(ge=0)] = 50
    """Loads and unloads on a node after which an attached engine is restarted; 0 never."""


class NeuronEntry(Section):
    """[[neurons]]: one GPU host."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """What operators call the host."""

    endpoint: BaseUrl
    """URL of the host's neuron."""


class GatewayConfig(Section):
    """All of cortex.toml."""

    gateway: GatewaySection = GatewaySection()
    eviction: EvictionSection = EvictionSection()
    neurons: tuple[NeuronEntry, ...] = ()

    @field_validator("neurons")
    @classmethod
    def _names_differ(cls, neurons: tuple[NeuronEntry, ...]) -> tuple[NeuronEntry, ...]:
        twice = [name for name, n in Counter(n.name for n in neurons).items() if n > 1]
        if twice:
            raise ValueError(f"two neurons are called {twice[0]!r}")
        return neurons
