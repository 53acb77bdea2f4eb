"""The harness protocol: what neuron asks of an adapter for a kind of engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cortex_common.hardware import Device
from cortex_common.models import LoadSpec


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine's HTTP face does, so that the gateway need not find out by failing.

    Attributes:
        cancels_unstreamed: a client's disconnect ends a non-streaming request (mistral.rs: no).
        usage_in_stream: how usage comes in a stream: as OpenAI's extra chunk when asked for, in
            the finish chunk, or never.
        routes: the OpenAI routes it has, such as "/v1/embeddings".
    """

    cancels_unstreamed: bool = True
    usage_in_stream: str = "asked"
    routes: frozenset[str] = field(
        default_factory=lambda: frozenset({"/v1/chat/completions", "/v1/completions"})
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start one engine process.

    Attributes:
        argv: program and arguments; never a shell line.
        env: variables beyond the supervisor's allow-list.
        port: loopback port that the engine was told to listen on.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int


@dataclass(frozen=True, slots=True)
class Probe:
    """The engine's answer to "are you ready".

    Attributes:
        ready: requests can be sent.
        stage: what it is doing while not ready, for people.
        progress: 0 to 1 where the engine tells.
        context: tokens per request, where the engine tells.
        version: the engine's version, where it tells.
    """

    ready: bool
    stage: str | None = None
    progress: float | None = None
    context: int | None = None
    version: str | None = None


class Harness(Protocol):
    """One kind of engine. Stateless: the runtime owns the instances."""

    name: str
    capabilities: EngineCapabilities

    def estimate_mb(self, spec: LoadSpec) -> int | None:
        """MiB that one device needs for this spec; None when it can't be known before loading."""
        ...

    def launch(self, spec: LoadSpec, devices: Sequence[Device], port: int) -> Launch:
        """How to start the engine.

        Raises:
            BadRequest: the spec asks for what this engine can't do, or the weights are not there.
        """
        ...

    async def probe(self, spec: LoadSpec, port: int) -> Probe:
        """Ask a starting engine whether it is ready; refused connections are "not ready"."""
        ...
