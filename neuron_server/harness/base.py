"""The harness protocol: the interface of an adapter for a kind of engine."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from cortex_common.schema.bounds import Count
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.process.supervisor import Launch


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What is known about an engine before it runs; partly reported to gateways, as `HarnessInfo`.

    Attributes:
        engine: the kind of engine, independent of the harness's name: "llamacpp", "vllm", "command", ...
        traits: how chat requests to it must be written.
        routes: the OpenAI routes that it supports, such as "/v1/embeddings".
        kinds: the kinds of device that it supports, in order of preference.
        stop_signal: the signal that stops the engine.
        exclusive_when_parallel: only one multi-device instance can run on a host.
        sizes_itself: the engine sizes its memory by what is free on the device, so nothing else can start or stop there
            while it loads.
        grows: the engine can allocate more memory after it is ready, so its grant stays reserved.
        takes_key: its engines reject requests without the key that the neuron gives them.
    """

    engine: str
    traits: EngineTraits = OPENAI
    routes: frozenset[str] = field(
        default_factory=lambda: frozenset({"/v1/chat/completions", "/v1/completions"})
    )
    kinds: tuple[DeviceKind, ...] = (DeviceKind.CUDA, DeviceKind.CPU)
    stop_signal: signal.Signals = signal.SIGTERM
    exclusive_when_parallel: bool = False
    sizes_itself: bool = False
    grows: bool = False
    takes_key: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a readiness probe.

    Attributes:
        ready: the engine accepts requests.
        stage: description of what it is doing while not ready.
        progress: 0 to 1, if the engine reports it.
        context: tokens per request, if the engine reports it.
        parallel: requests processed at the same time, if the engine reports it.
        version: the engine's version, if it reports one.
    """

    ready: bool
    stage: str | None = None
    progress: float | None = None
    context: int | None = None
    parallel: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory that a load needs.

    Attributes:
        device_mb: MiB on each device.
        host_mb: MiB of the host's RAM in addition, for layers that stay there.
    """

    device_mb: int
    host_mb: int = 0


@dataclass(frozen=True, slots=True)
class LoadCycles:
    """Loads and unloads of an attached engine since it started.

    Attributes:
        started: Unix seconds at which the engine started; None if it does not report that.
        count: loads and unloads by this node since then.
    """

    started: Count | None = None
    count: Count = 0

    def incremented(self) -> LoadCycles:
        """Return the cycles after one more load or unload."""
        return replace(self, count=self.count + 1)

    def observed(self, started: int | None) -> LoadCycles:
        """Return the cycles of an engine with the given start time: 0 if it was restarted."""
        return self if started in {None, self.started} else LoadCycles(started)


class Harness(Protocol):
    """An adapter for one kind of engine. The runtime owns the instances.

    There are two kinds of harness: a `ProcessHarness` starts an engine process per instance; an `AttachedHarness` uses
    an engine that the neuron does not start and that can hold several models.
    """

    name: str
    capabilities: EngineCapabilities

    @property
    def program(self) -> str | None:
        """Path of the engine's program; None if it is missing, or if the engine has no program of its own."""
        ...

    @property
    def missing_reason(self) -> str | None:
        """What the engine lacks on this host, and what to do about it; None if nothing is missing."""
        ...

    async def prepare(self) -> None:
        """Inspect the engine's program before `launch`; cheap if it has been inspected before."""
        ...

    async def cpu_only_reason(self) -> str | None:
        """Return why the engine would use only the CPU of a host with GPUs, and what to do about it.

        None if it uses GPUs, or if that can't be determined. This can start the program, so it is not called often.
        """
        ...

    def served_as(self, spec: LoadSpec) -> str | None:
        """Return the name that the engine expects in requests, if it differs from the model's."""
        ...

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """Return the MiB of weights that a load reads; None if they are not on this host's disk."""
        ...

    async def estimate(
        self, spec: LoadSpec, kind: DeviceKind, devices: Sequence[Device]
    ) -> MemoryEstimate | None:
        """Return the memory that a spec needs; None if that is unknown before loading.

        Args:
            spec: the load.
            kind: the kind of its devices.
            devices: the devices, if they have been chosen.
        """
        ...

    async def in_flight(self, url: str) -> int | None:
        """Return the requests that the engine is processing or has queued; None if it does not report that."""
        ...


@runtime_checkable
class ProcessHarness(Harness, Protocol):
    """A harness with a process per instance, started and stopped by the neuron's supervisor."""

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:
        """Return the command that starts the engine on a host and port.

        `keys.KEY_FIELD` and `keys.KEY_FILE_FIELD` in it stand for the engine's API key and the file that contains it.

        Args:
            spec: the load, with `vram_mb` as the MiB per device that the engine is configured to use.
            devices: the devices granted to the engine, in the order of their indices.
            host: address to listen on.
            port: port to listen on.

        Raises:
            BadRequest: the engine does not support the spec, or the weights do not exist.
            NotSupported: the engine's program is not installed.
        """
        ...

    async def probe(self, spec: LoadSpec, url: str) -> Probe:
        """Probe whether an engine is ready; a refused connection means that it is not."""
        ...


@runtime_checkable
class AttachedHarness(Harness, Protocol):
    """A harness for an engine that the neuron does not start, controlled through its management API.

    Attributes:
        url: base URL of the engine.
        load_cycles: counted by the harness; the runtime keeps them across restarts of the neuron.
    """

    url: str
    load_cycles: LoadCycles

    @property
    def restartable(self) -> bool:
        """Whether the engine can be restarted."""
        ...

    async def restart(self) -> Mapping[str, bool]:
        """Restart the engine and return its models, as `list_models` does; concurrent loads and unloads wait.

        Raises:
            LoadFailed: it could not be restarted, or did not become reachable.
            NotSupported: the host has no service manager.
        """
        ...

    async def list_models(self) -> Mapping[str, bool] | None:
        """Return the engine's models and whether each is loaded; None if it can't be reached."""
        ...

    async def load(self, spec: LoadSpec) -> Probe:
        """Load one of its models; return once it is ready.

        Raises:
            BadRequest: the engine does not know the model.
            LoadFailed: the load failed, or the engine can't be reached.
        """
        ...

    async def unload(self, spec: LoadSpec) -> None:
        """Unload one of its models, unless it is not loaded.

        Raises:
            UpstreamFailed: the engine did not unload it.
        """
        ...
