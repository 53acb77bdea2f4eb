"""The fleet as the gateway sees it: what the router reads, the operator API sends, CLI and TUI draw.

Frozen dataclasses, because the pure cores compute on them thousands of times a second;
`SNAPSHOT` reads and writes them as JSON. Nobody changes a snapshot: a change is a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter

from cortex_common.clock import Moment
from cortex_common.net.tls import Certificate
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import EngineFailures, InstanceId, InstanceState, ModelId


class NodeState(StrEnum):
    """Whether the gateway can use a node."""

    CONNECTING = "connecting"
    UP = "up"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device with its latest reading; MiB throughout. See `hardware.DeviceReading`."""

    index: int
    uuid: str
    kind: DeviceKind
    name: str
    vram_total_mb: int
    vram_used_mb: int = 0
    vram_free_mb: int = 0
    vram_reserved_mb: int = 0
    vram_other_mb: int = 0
    vram_headroom_mb: int = 0
    vram_available_mb: int = 0
    utilization_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    compute_capability: str | None = None
    unified: bool = False
    health: DeviceHealth = DeviceHealth.OK
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One loaded copy of a model.

    Attributes:
        in_flight: requests under way on it: this gateway's, and those of others that its node tells of.
        last_used: Unix seconds at which its last request ended (its load, before the first).
        pinned: never evicted, by the profile or by an operator.
        reason: why the scheduler put it there.
        failing: why the gateway leaves it alone for now although it is ready: its last failure.
        requests, errors, tokens_in, tokens_out: totals of this gateway since the instance was loaded;
            they only grow, so a reader gets rates from two snapshots.
    """

    id: InstanceId
    model: ModelId
    node: str
    harness: str
    state: InstanceState
    devices: tuple[int, ...] = ()
    vram_used_mb: int = 0
    vram_by_device: tuple[int, ...] = ()
    url: str | None = None
    context: int | None = None
    parallel: int | None = None
    progress: float | None = None
    stage: str | None = None
    eta_s: float | None = None
    load_seconds: float | None = None
    in_flight: int = 0
    last_used: Moment = 0.0
    started_at: Moment = 0.0
    pinned: bool = False
    error: str | None = None
    engine_version: str | None = None
    reason: str | None = None
    failing: str | None = None
    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine that somebody else runs and a node drives. See `models.AttachedEngine`."""

    harness: str
    reachable: bool = True
    restartable: bool = False
    restarting: bool = False
    cycles: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """A host that runs a neuron, or a server of somebody else.

    Attributes:
        upstream: it has no neuron: nothing is loaded or ended there.
        reason: why it is not up.
        seen_at: Unix seconds of the last message from it.
        stopping_s: what that said of how long its neuron, told to stop, still gives to relayed requests.
        cordoned: no new instances are placed on it.
        harness_kinds: the kinds of devices that the engines of each harness run on, the preferred first.
        engines: of somebody else, that it drives.
        certificates: of its neuron.
        failures: of its engines.
    """

    name: str
    endpoint: str
    state: NodeState = NodeState.CONNECTING
    reason: str | None = None
    seen_at: Moment = 0.0
    stopping_s: float = 0.0
    hostname: str = ""
    os: str = ""
    kernel: str = ""
    driver_version: str | None = None
    cuda_version: str | None = None
    neuron_version: str = ""
    harnesses: tuple[str, ...] = ()
    harness_kinds: Mapping[str, tuple[DeviceKind, ...]] = field(
        default_factory=dict[str, tuple[DeviceKind, ...]]
    )
    devices: tuple[DeviceView, ...] = ()
    instances: tuple[InstanceView, ...] = ()
    engines: tuple[EngineView, ...] = ()
    warnings: tuple[str, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    failures: tuple[EngineFailures, ...] = ()
    cordoned: bool = False
    upstream: bool = False


class ModelState(StrEnum):
    """The state of a model over all its instances: the best of them."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class ModelView:
    """A name that clients can send.

    Attributes:
        nodes: names of the nodes with a ready instance.
        waiting: requests that wait for a load of it.
        in_flight: requests under way on its instances.
        context: tokens a request may use, where known.
        error: why the last load failed.
        requests, errors, tokens_in, tokens_out: totals of this gateway since it started; they only grow,
            so a reader gets rates from two snapshots.
        ttft_p50_ms, ttft_p95_ms: milliseconds to the first token of its recent requests, cold starts left out.
        unload_at: Unix seconds at which it is unloaded when nobody asks for it; None for never.
    """

    id: ModelId
    state: ModelState
    aliases: tuple[str, ...] = ()
    harness: str = ""
    nodes: tuple[str, ...] = ()
    instances: int = 0
    waiting: int = 0
    in_flight: int = 0
    requests: int = 0
    context: int | None = None
    vram_mb: int | None = None
    pinned_on: tuple[str, ...] = ()
    error: str | None = None
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    unload_at: Moment | None = None


@dataclass(frozen=True, slots=True)
class SettingsView:
    """How the gateway's settings stand to their files.

    Attributes:
        read_at: Unix seconds at which those in force were read; 0 where they are from no files.
        refused: why the files, as they are now, are not followed.
        restart: settings whose change is followed after a restart only.
    """

    read_at: Moment = 0.0
    refused: str | None = None
    restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Everything that is known about the fleet at one moment.

    Attributes:
        version: grows by one with every change; orders snapshots of one gateway.
        at: Unix seconds.
        gateway_version: version of cortex that the gateway runs.
        started_at: Unix seconds at which the gateway started.
        certificates: of the gateway, those that it knows nodes by among them.
        settings: of the gateway.
    """

    version: int
    at: Moment
    nodes: tuple[NodeView, ...] = ()
    models: tuple[ModelView, ...] = ()
    gateway_version: str = ""
    started_at: Moment = 0.0
    certificates: tuple[Certificate, ...] = ()
    settings: SettingsView = SettingsView()

    def node(self, name: str) -> NodeView | None:
        """The node of that name."""
        return next((n for n in self.nodes if n.name == name), None)

    def model(self, name: str) -> ModelView | None:
        """The model of that name or alias."""
        return next((m for m in self.models if name == m.id or name in m.aliases), None)

    @property
    def all_certificates(self) -> tuple[tuple[str, tuple[Certificate, ...]], ...]:
        """Of each node by its name; those of the gateway, whose name is empty, come first."""
        return (("", self.certificates), *((n.name, n.certificates) for n in self.nodes))

    def instances(self) -> tuple[InstanceView, ...]:
        """All instances of all nodes."""
        return tuple(i for n in self.nodes for i in n.instances)


SNAPSHOT: TypeAdapter[FleetSnapshot] = TypeAdapter(FleetSnapshot)
"""Reads and writes a snapshot as JSON."""
