"""Columns of the lists that show a fleet snapshot, and its problems."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cortex_cli.color import Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column, brief
from cortex_common.schema.fleet import (
    DeviceView,
    FleetSnapshot,
    InstanceView,
    ModelState,
    ModelView,
    NodeState,
    NodeView,
)
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.schema.instances import InstanceState
from cortex_common.units import format_duration, format_mib

_STATE_TONES = {
    "ready": Tone.GOOD,
    "up": Tone.GOOD,
    "ok": Tone.GOOD,
    "loading": Tone.WARN,
    "connecting": Tone.WARN,
    "draining": Tone.WARN,
    "stopping": Tone.WARN,
    "failed": Tone.BAD,
    "unreachable": Tone.BAD,
    "lost": Tone.BAD,
    "unloaded": Tone.DIM,
    "stopped": Tone.DIM,
}


def state_tone(state: str) -> Tone | None:
    """Return the color of a state."""
    return _STATE_TONES.get(state)


def device_list(indices: tuple[int, ...]) -> str:
    """Format device indices with ranges: "0-3,6"."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def place(instance: InstanceView) -> str:
    """Format the placement of an instance: "beast/0-1"."""
    devices = device_list(instance.devices)
    return f"{instance.node}/{devices}" if devices else instance.node


def percent(part: float, whole: float) -> str:
    """Format a fraction as "76%"; "–" if the whole is 0."""
    return f"{100 * part / whole:.0f}%" if whole else "–"


def progress_text(instance: InstanceView) -> str:
    """Format the progress of a load: "61% weights ~12s left"; empty for an instance that is not loading."""
    if instance.state is not InstanceState.LOADING:
        return ""
    parts = [
        f"{100 * instance.progress:.0f}%" if instance.progress is not None else "",
        instance.stage or "",
        f"~{format_duration(instance.eta_s)} left" if instance.eta_s is not None else "",
    ]
    return " ".join(p for p in parts if p)


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An instance as a row.

    Attributes:
        at: Unix seconds of the snapshot.
        model_waiting: number of requests that wait for its model.
        node: state of its node; unless it is up, the instance is shown in its last known state.
    """

    instance: InstanceView
    at: float
    model_waiting: int = 0
    node: NodeState = NodeState.UP


def instance_rows(snapshot: FleetSnapshot) -> list[InstanceRow]:
    """Return the instances, ordered by model and placement."""
    waiting = {m.id: m.waiting for m in snapshot.models}
    rows = [
        InstanceRow(i, snapshot.at, waiting.get(i.model, 0), node.state)
        for node in snapshot.nodes
        for i in node.instances
    ]
    return sorted(rows, key=lambda r: (r.instance.model, r.instance.node, r.instance.devices))


def _status(row: InstanceRow) -> str:
    instance = row.instance
    if row.node is not NodeState.UP:
        return f"node {row.node}"
    if instance.state is InstanceState.LOADING:
        return progress_text(instance)
    if instance.error or instance.failing:
        return brief(instance.error or f"isolated: {instance.failing}")
    if instance.pinned:
        return "pinned"
    if instance.in_flight:
        return "in use"
    return (
        f"idle {format_duration(max(0.0, row.at - instance.last_used))}"
        if instance.last_used
        else ""
    )


INSTANCES: ListKind[InstanceRow] = ListKind(
    kind="InstanceList",
    columns=(
        Column("NAME", lambda r: r.instance.model),
        Column(
            "STATE", lambda r: r.instance.state.value, tone=lambda r: state_tone(r.instance.state)
        ),
        Column("NODE/DEVICE", lambda r: place(r.instance)),
        Column("VRAM", lambda r: format_mib(r.instance.vram_used_mb), right=True),
        Column("CTX", lambda r: str(r.instance.context or "–"), right=True),
        Column("ACTIVE", lambda r: str(r.instance.in_flight), right=True),
        Column("WAITING", lambda r: str(r.model_waiting), right=True),
        Column("REQUESTS", lambda r: str(r.instance.requests), right=True),
        Column("INSTANCE", lambda r: r.instance.id, wide=True),
        Column("HARNESS", lambda r: r.instance.harness, wide=True),
        Column(
            "LOAD TIME", lambda r: format_duration(r.instance.load_seconds), wide=True, right=True
        ),
        Column("ENDPOINT", lambda r: r.instance.url or "", wide=True),
        Column("REASON", lambda r: r.instance.reason or "", wide=True),
        Column("STATUS", _status),
    ),
    name=lambda r: r.instance.model,
    empty_text="nothing is loaded",
    to_json=lambda r: r.instance,
)


def _model_places(model: ModelView) -> str:
    return ", ".join(model.nodes)


MODELS: ListKind[ModelView] = ListKind(
    kind="ModelList",
    columns=(
        Column("NAME", lambda m: m.id),
        Column("STATE", lambda m: m.state.value, tone=lambda m: state_tone(m.state)),
        Column("NODES", _model_places),
        Column("VRAM", lambda m: format_mib(m.vram_mb), right=True),
        Column("CTX", lambda m: str(m.context or "–"), right=True),
        Column("ACTIVE", lambda m: str(m.in_flight), right=True),
        Column("WAITING", lambda m: str(m.waiting), right=True),
        Column("REQUESTS", lambda m: str(m.requests), right=True),
        Column("HARNESS", lambda m: m.harness, wide=True),
        Column("ALIASES", lambda m: ", ".join(m.aliases), wide=True),
        Column("PINNED ON", lambda m: ", ".join(m.pinned_on), wide=True),
        Column("TTFT P50", lambda m: _ms(m.ttft_p50_ms), wide=True, right=True),
        Column("TTFT P95", lambda m: _ms(m.ttft_p95_ms), wide=True, right=True),
        Column("NOTE", lambda m: brief(m.error or ""), tone=lambda _m: Tone.BAD),
    ),
    name=lambda m: m.id,
    empty_text="the catalogue is empty; add a model to models.toml",
)


def _ms(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds:.0f}ms"


def node_memory(node: NodeView) -> tuple[int, int]:
    """Return used and total MiB over a node's devices."""
    return (
        sum(d.vram_used_mb for d in node.devices),
        sum(d.vram_total_mb for d in node.devices),
    )


def _node_state(node: NodeView) -> str:
    return f"{node.state.value}, cordoned" if node.cordoned else node.state.value


def _node_devices(node: NodeView) -> str:
    names: dict[str, int] = {}
    for device in node.devices:
        names[device.name] = names.get(device.name, 0) + 1
    return ", ".join(f"{count}× {name}" if count > 1 else name for name, count in names.items())


def _node_vram(node: NodeView) -> str:
    used, total = node_memory(node)
    return f"{format_mib(used)}/{format_mib(total)}" if total else "–"


NODES: ListKind[NodeView] = ListKind(
    kind="NodeList",
    columns=(
        Column("NAME", lambda n: n.name),
        Column("STATE", _node_state, tone=lambda n: state_tone(n.state)),
        Column("DEVICES", _node_devices),
        Column("VRAM", _node_vram, right=True),
        Column("INSTANCES", lambda n: str(len(n.instances)), right=True),
        Column("HARNESSES", lambda n: ", ".join(n.harnesses)),
        Column("DRIVER", lambda n: n.driver_version or "", wide=True),
        Column("CUDA", lambda n: n.cuda_version or "", wide=True),
        Column("NEURON", lambda n: n.neuron_version, wide=True),
        Column("OS", lambda n: n.os, wide=True),
        Column("ENDPOINT", lambda n: n.endpoint, wide=True),
        Column("NOTE", lambda n: n.reason or "; ".join(n.warnings)),
    ),
    name=lambda n: n.name,
    empty_text="the gateway has no nodes; add them to cortex.toml under [[neurons]]",
)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as a row."""

    node: str
    device: DeviceView
    models: tuple[str, ...]


def device_rows(snapshot: FleetSnapshot) -> list[DeviceRow]:
    """Return all devices, ordered by node and index."""
    return [
        DeviceRow(
            node.name,
            device,
            tuple(i.model for i in node.instances if device.index in i.devices),
        )
        for node in snapshot.nodes
        for device in node.devices
    ]


@dataclass(frozen=True, slots=True)
class FragmentationRow:
    """How the available memory of a node is distributed over its devices, in MiB.

    Attributes:
        available: sum over all devices.
        largest: maximum over the devices, which limits models on a single device.
        devices: available memory of each device.
    """

    node: str
    available: int
    largest: int
    devices: tuple[int, ...]

    @property
    def fragmented(self) -> float:
        """Fraction of the available memory that no single device can provide, 0 to 1."""
        return 1 - self.largest / self.available if self.available else 0.0


def fragmentation_rows(snapshot: FleetSnapshot) -> list[FragmentationRow]:
    """Return the nodes that have devices, most fragmented first."""
    rows = []
    for node in snapshot.nodes:
        available = tuple(d.vram_available_mb for d in node.devices)
        if available:
            rows.append(FragmentationRow(node.name, sum(available), max(available), available))
    return sorted(rows, key=lambda r: (-r.fragmented, r.node))


FRAGMENTATION: ListKind[FragmentationRow] = ListKind(
    kind="FragmentationList",
    columns=(
        Column("NODE", lambda r: r.node),
        Column("AVAILABLE", lambda r: format_mib(r.available), right=True),
        Column("LARGEST", lambda r: format_mib(r.largest), right=True),
        Column("FRAGMENTED", lambda r: f"{100 * r.fragmented:.0f}%", right=True),
        Column("BY DEVICE", lambda r: " ".join(map(format_mib, r.devices))),
    ),
    name=lambda r: r.node,
    empty_text="no node has a device",
    to_json=lambda r: asdict(r) | {"fragmented": round(r.fragmented, 4)},
)


def _unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.0f}{unit}"


DEVICES: ListKind[DeviceRow] = ListKind(
    kind="DeviceList",
    columns=(
        Column("DEVICE", lambda r: f"{r.node}/{r.device.index}"),
        Column("NAME", lambda r: r.device.name),
        Column("USED", lambda r: format_mib(r.device.vram_used_mb), right=True),
        Column("RESERVED", lambda r: format_mib(r.device.vram_reserved_mb), right=True),
        Column("OTHER", lambda r: format_mib(r.device.vram_other_mb), right=True),
        Column("AVAILABLE", lambda r: format_mib(r.device.vram_available_mb), right=True),
        Column("TOTAL", lambda r: format_mib(r.device.vram_total_mb), right=True),
        Column("UTIL", lambda r: _unit(r.device.utilization_pct, "%"), right=True),
        Column("TEMP", lambda r: _unit(r.device.temp_c, "°C"), right=True),
        Column("POWER", lambda r: _unit(r.device.power_w, "W"), right=True, wide=True),
        Column("CC", lambda r: r.device.compute_capability or "", wide=True),
        Column("UUID", lambda r: r.device.uuid, wide=True),
        Column(
            "HEALTH", lambda r: r.device.health.value, tone=lambda r: state_tone(r.device.health)
        ),
        Column("MODELS", lambda r: ", ".join(r.models)),
    ),
    name=lambda r: f"{r.node}/{r.device.index}",
    empty_text="no node has a device",
    to_json=lambda r: {"node": r.node, **asdict(r.device), "models": r.models},
)


def problems(snapshot: FleetSnapshot) -> list[str]:
    """Return the problems of the fleet, worst first; empty for a healthy fleet."""
    found = [
        f"node {node.name} is unreachable: {node.reason or 'no response'}"
        for node in snapshot.nodes
        if node.state is NodeState.UNREACHABLE
    ]
    for node in snapshot.nodes:
        found += [
            f"device {node.name}/{d.index} is lost: {d.reason or 'unknown reason'}"
            for d in node.devices
            if d.health is DeviceHealth.LOST
        ]
        found += [f"node {node.name}: {w}" for w in node.warnings]
    found += snapshot.warnings
    if snapshot.settings.reload_error:
        found.append(f"the gateway uses older settings: {brief(snapshot.settings.reload_error)}")
    for owner, certificates in snapshot.all_certificates:
        prefix = f"node {owner}: " if owner else ""
        found += [f"{prefix}{t}" for c in certificates if (t := c.problem(snapshot.at))]
    found += [
        f"model {i.model} is being restarted on {i.node}: {brief(i.error)}"
        for i in snapshot.instances()
        if i.state is InstanceState.LOADING and i.error
    ]
    found += [
        f"model {m.id} failed: {brief(m.error or 'unknown reason')}"
        for m in snapshot.models
        if m.state is ModelState.FAILED
    ]
    if not snapshot.nodes:
        found.append("the gateway has no nodes")
    return found
