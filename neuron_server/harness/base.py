"""The harness protocol: what neuron asks of an adapter for a kind of engine."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What is known of an engine before it runs; reported to gateways in part, as `HarnessInfo`.

    Attributes:
        engine: the kind of engine, whatever its harness is called: "llamacpp", "vllm", "command", ...
        traits: how chat requests to it must be worded.
        routes: the OpenAI routes it has, such as "/v1/embeddings".
        kinds: the devices it runs on, the preferred first.
        stop_signal: what asks the engine to end.
        exclusive_when_parallel: two instances that spread over several devices can't share a host.
    """

    engine: str
    traits: EngineTraits = OPENAI
    routes: frozenset[str] = field(
        default_factory=lambda: frozenset({"/v1/chat/completions", "/v1/completions"})
    )
    kinds: tuple[DeviceKind, ...] = (DeviceKind.CUDA, DeviceKind.CPU)
    stop_signal: signal.Signals = signal.SIGTERM
    exclusive_when_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start one engine process.

    Attributes:
        argv: program and arguments; never a shell line.
        env: variables beyond the supervisor's allow-list.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """The engine's answer to "are you ready".

    Attributes:
        ready: requests can be sent.
        stage: what it is doing while not ready, for people.
        progress: 0 to 1 where the engine tells.
        context: tokens per request, where the engine tells.
        parallel: requests computed side by side, where the engine tells.
        version: the engine's version, where it tells.
    """

    ready: bool
    stage: str | None = None
    progress: float | None = None
    context: int | None = None
    parallel: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class LoadCycles:
    """Loads and unloads of an attached engine since it started.

    Attributes:
        started: Unix seconds at which the engine started; None if it does not report that.
        count: loads and unloads by this node since then.
    """

    started: int | None = None
    count: int = 0

    def incremented(self) -> LoadCycles:
        """Return the cycles after one more load or unload."""
        return replace(self, count=self.count + 1)

    def observed(self, started: int | None) -> LoadCycles:
        """Return the cycles of an engine with the given start time: 0 if it was restarted."""
        return self if started in {None, self.started} else LoadCycles(started)


class Harness(Protocol):
    """One kind of engine. Stateless: the runtime owns the instances.

    There are two sorts: most engines are a process of ours for each instance (`ProcessHarness`); an attached one
    is run by someone else and holds several models (`AttachedHarness`).
    """

    name: str
    capabilities: EngineCapabilities

    @property
    def program(self) -> str | None:
        """Path of the engine's program; None where it is missing, or is no program of its own."""
        ...

    @property
    def missing(self) -> str | None:
        """What of the engine is not on this host, and what to do about it, for people; None where nothing is."""
        ...

    async def prepare(self) -> None:
        """Look at the engine's program, so that `launch` need not; cheap when done before."""
        ...

    async def without_gpu(self) -> str | None:
        """Why the engine's program would compute on the processor of a host with GPUs, and what to do about it.

        None where it would not, or where that can't be known. Starts the program, so it is not asked often.
        """
        ...

    def served_as(self, spec: LoadSpec) -> str | None:
        """The name that the engine wants in requests, where it is not the model's."""
        ...

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """MiB of weights that a load reads; None when they are not on this host's disk."""
        ...

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:
        """MiB that each device needs for this spec; None when it can't be known before loading."""
        ...

    async def in_flight(self, url: str) -> int | None:
        """Requests that the engine has under way or queued; None when it does not tell."""
        ...


@runtime_checkable
class ProcessHarness(Harness, Protocol):
    """One process an instance, started and stopped by the neuron's supervisor."""

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """How to start the engine so that it listens on host and port.

        Args:
            spec: what was asked for, with `vram_mb` as it was promised.
            devices: the engine's own, in the order of their indices.
            host: address to listen on.
            port: to listen on.

        Raises:
            BadRequest: the spec asks for what this engine can't do, or the weights are not there.
            NotSupported: the engine's program is not on this host.
        """
        ...

    async def probe(self, spec: LoadSpec, url: str) -> Probe:
        """Ask a starting engine whether it is ready; refused connections are "not ready"."""
        ...


@runtime_checkable
class AttachedHarness(Harness, Protocol):
    """An engine that someone else runs, driven through its own management calls.

    Attributes:
        load_cycles: counted by the harness; the runtime keeps them across restarts of the neuron.
    """

    url: str
    load_cycles: LoadCycles

    @property
    def restartable(self) -> bool:
        """Whether it is known what to restart."""
        ...

    async def restart(self) -> Mapping[str, bool]:
        """Restart the engine; returns what `loaded` tells then. Loads and unloads that come meanwhile wait.

        Raises:
            LoadFailed: it could not be restarted, or did not come back.
            NotSupported: the host has no service manager.
        """
        ...

    async def loaded(self) -> Mapping[str, bool] | None:
        """The engine's models and whether each is loaded; None when it can't be reached."""
        ...

    async def load(self, spec: LoadSpec) -> Probe:
        """Load one of its models and return once it is ready.

        Raises:
            BadRequest: the engine does not know the model.
            LoadFailed: it could not load it, or can't be reached.
        """
        ...

    async def unload(self, spec: LoadSpec) -> None:
        """Unload one of its models; nothing to do when it is not loaded.

        Raises:
            UpstreamFailed: the engine refused.
        """
        ...
