"""The fleet as the gateway sees it: computed by the router, sent by the operator API, shown by CLI and TUI.

Frozen dataclasses, because pure placement code computes on them thousands of times per second. `SNAPSHOT` serializes
them as JSON. A snapshot is never modified; every change creates a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter

from cortex_common.clock import Timestamp
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import EngineFailures, InstanceId, InstanceState, ModelId


class NodeState(StrEnum):
    """Whether the gateway can reach a node."""

    CONNECTING = "connecting"
    UP = "up"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device with its latest readings; all sizes in MiB. See `hardware.DeviceReading`."""

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
    ordinal: int | None = None
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    cordoned: bool = False
    health: DeviceHealth = DeviceHealth.OK
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One loaded copy of a model.

    Attributes:
        in_flight: requests in flight: those of this gateway, and those of others that its node reports.
        last_used: Unix seconds at which its last request ended; before the first one, at which its load ended.
        pinned: whether its model config or an operator protects it from eviction.
        reason: why the scheduler placed it there.
        vram_measured_mb, vram_peak_mb, vram_granted_mb, grows, failure, config: see `instances.ModelInfo`.
        failing: why the gateway sends it no requests although it is ready: its last failure, or what forbids it.
        routable: whether it may get requests at all: its node may run its model, and its URL is on the node.
        requests, errors, tokens_in, tokens_out: totals of this gateway since the instance was loaded. They only
            increase, so rates can be computed from two snapshots.
    """

    id: InstanceId
    model: ModelId
    node: str
    harness: str
    state: InstanceState
    devices: tuple[int, ...] = ()
    vram_used_mb: int = 0
    vram_by_device: tuple[int, ...] = ()
    vram_measured_mb: tuple[int, ...] = ()
    vram_peak_mb: int = 0
    vram_granted_mb: int = 0
    grows: bool = False
    failure: str | None = None
    config: str | None = None
    url: str | None = None
    context: int | None = None
    parallel: int | None = None
    progress: float | None = None
    stage: str | None = None
    eta_s: float | None = None
    load_seconds: float | None = None
    in_flight: int = 0
    last_used: Timestamp = 0.0
    started_at: Timestamp = 0.0
    pinned: bool = False
    error: str | None = None
    engine_version: str | None = None
    reason: str | None = None
    failing: str | None = None
    routable: bool = True
    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class EngineView:
    """An attached engine of a node. See `instances.AttachedEngine`."""

    harness: str
    reachable: bool = True
    restartable: bool = False
    restarting: bool = False
    cycles: int = 0


ABSENCE_GRACE_S = 60.0
"""A node that was up this recently is expected back: a neuron that is being upgraded, or a network that drops out, is
away for seconds. A node that announced its stop gets the announced time on top."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A host that runs a neuron, or an external upstream.

    Attributes:
        upstream: whether it is an external upstream, on which nothing is loaded or unloaded.
        reason: why it is not up.
        seen_at: Unix seconds of the last message from it.
        absent_s: seconds since it became unreachable; 0 if it is not.
        stopping_s: seconds that its neuron, which is shutting down, gives to relayed requests; 0 if it is not.
        cordoned: whether new instances are not placed on it.
        harness_kinds: device kinds that the engines of each harness run on, preferred first.
        keyless_harnesses: harnesses whose engines every program on the node can use, because they take no key.
        engines: its attached engines.
        certificates: TLS certificates of its neuron.
        failures: failure counts of its engines.
    """

    name: str
    endpoint: str
    state: NodeState = NodeState.CONNECTING
    reason: str | None = None
    seen_at: Timestamp = 0.0
    absent_s: float = 0.0
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
    keyless_harnesses: tuple[str, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    instances: tuple[InstanceView, ...] = ()
    engines: tuple[EngineView, ...] = ()
    warnings: tuple[str, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    failures: tuple[EngineFailures, ...] = ()
    cordoned: bool = False
    upstream: bool = False

    @property
    def is_expected_back(self) -> bool:
        """Whether it was up until a moment ago, so that its instances are expected to be there when it is back."""
        was_up = self.state is NodeState.UNREACHABLE and self.seen_at > 0
        return was_up and self.absent_s < ABSENCE_GRACE_S + self.stopping_s


class ModelState(StrEnum):
    """The state of a model: the best state of its instances."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model that clients can request.

    Attributes:
        nodes: names of the nodes with a ready instance.
        waiting: requests that wait for it to load.
        in_flight: requests in flight on its instances.
        context: context size in tokens, if known.
        error: why the last load failed.
        requests, errors, tokens_in, tokens_out: totals of this gateway since it started. They only increase, so rates
            can be computed from two snapshots.
        ttft_p50_ms, ttft_p95_ms: milliseconds to the first token of recent requests, cold starts excluded.
        unload_at: Unix seconds at which it is unloaded if it is not used; None for never.
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
    unload_at: Timestamp | None = None


@dataclass(frozen=True, slots=True)
class SettingsView:
    """The state of the gateway's settings relative to its configuration files.

    Attributes:
        read_at: Unix seconds at which the effective settings were read; 0 if they do not come from files.
        reload_error: why the current content of the files is not used.
        restart: changed settings that require a restart.
    """

    read_at: Timestamp = 0.0
    reload_error: str | None = None
    restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The whole fleet at one point in time.

    Attributes:
        version: increases by one with every change, which orders the snapshots of one gateway.
        at: Unix seconds.
        gateway_version: cortex version of the gateway.
        started_at: Unix seconds at which the gateway started.
        certificates: TLS certificates of the gateway, including those that it verifies nodes with.
        settings: state of the gateway's settings.
        warnings: problems of the gateway itself that an operator should look at.
    """

    version: int
    at: Timestamp
    nodes: tuple[NodeView, ...] = ()
    models: tuple[ModelView, ...] = ()
    gateway_version: str = ""
    started_at: Timestamp = 0.0
    certificates: tuple[Certificate, ...] = ()
    settings: SettingsView = SettingsView()
    warnings: tuple[str, ...] = ()

    def node(self, name: str) -> NodeView | None:
        """Return the node with a name."""
        return next((n for n in self.nodes if n.name == name), None)

    def model(self, name: str) -> ModelView | None:
        """Return the model with a name or alias."""
        return next((m for m in self.models if name == m.id or name in m.aliases), None)

    @property
    def all_certificates(self) -> tuple[tuple[str, tuple[Certificate, ...]], ...]:
        """The certificates by node name, after those of the gateway with an empty name."""
        return (("", self.certificates), *((n.name, n.certificates) for n in self.nodes))

    def instances(self) -> tuple[InstanceView, ...]:
        """Return all instances of all nodes."""
        return tuple(i for n in self.nodes for i in n.instances)


SNAPSHOT: TypeAdapter[FleetSnapshot] = TypeAdapter(FleetSnapshot)
"""Serializes and parses a snapshot as JSON."""
