"""A neuron's report about its host: the wire types of GET /discovery and GET /health."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from cortex_common.schema.base import WireModel
from cortex_common.schema.bounds import Float, Index, Int, Mib, Name, Seconds, Text, UnixSeconds
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_common.schema.tolerance import keep_readable


class DeviceKind(StrEnum):
    """The type of a device."""

    CUDA = "cuda"
    CPU = "cpu"


class Device(WireModel):
    """A GPU, or the host's CPU and RAM offered as a device.

    Attributes:
        index: position in PCI bus order on this host, which people type. The cpu device comes last.
        uuid: the driver's identifier of the GPU, stable across reboots, which engines are started with.
        vram_total_mb: MiB that the driver reports; for a cpu device, the MiB that the host offers.
        compute_capability: such as "9.0"; None if it has none.
        unified: whether memory is shared with the host, so that the numbers are those of the host.
        ordinal: the GPU's number for engines that can't be given a UUID, with CUDA_DEVICE_ORDER=PCI_BUS_ID.
        links: how it is connected to other GPUs, by UUID: "nvlink", "pcie", "numa" (the same NUMA node) or "system".
        labels: labels from neuron.toml.
        cordoned: whether neuron.toml excludes it from new instances.
    """

    index: Index
    uuid: Name
    kind: DeviceKind = DeviceKind.CUDA
    name: Name
    vram_total_mb: Mib
    compute_capability: str | None = None
    unified: bool = False
    ordinal: Index | None = None
    links: Annotated[dict[Name, Name], Field(max_length=64)] = Field(default_factory=dict)
    labels: Annotated[dict[Name, Name], Field(max_length=64)] = Field(default_factory=dict)
    cordoned: bool = False


class DeviceHealth(StrEnum):
    """Whether a device is usable."""

    OK = "ok"
    LOST = "lost"


class DeviceReading(WireModel):
    """One device at one point in time. A field that the driver does not support is None.

    Attributes:
        vram_used_mb: measured MiB in use by any process.
        vram_free_mb: MiB not in use; part of it can be reserved, see `vram_reserved_mb`.
        vram_reserved_mb: MiB reserved for loads in progress and not yet measured as used.
        vram_other_mb: MiB used by processes that this neuron did not start.
        vram_headroom_mb: MiB that this host keeps free on this device.
        vram_available_mb: MiB that a new load can reserve, according to the node's ledger.
        utilization_pct: percentage of time that the device was busy.
        temp_c: temperature in degrees Celsius.
        power_w: power draw in watts.
        reason: why the device is not ok.
    """

    index: Index
    vram_used_mb: Int
    vram_free_mb: Int
    utilization_pct: Int | None = None
    temp_c: Int | None = None
    power_w: Float | None = None
    vram_reserved_mb: Int = 0
    vram_other_mb: Int = 0
    vram_headroom_mb: Int = 0
    vram_available_mb: Int = 0
    health: DeviceHealth = DeviceHealth.OK
    reason: Text | None = None


class HostWarning(WireModel):
    """A problem on the host that an operator should fix.

    Attributes:
        code: stable, such as "driver_not_loaded".
        message: what is wrong and what to do, for people.
    """

    code: Name
    message: Text


class HarnessInfo(WireModel):
    """A harness of a node.

    Attributes:
        engine: the kind of its engines, regardless of its name: "llamacpp", "vllm", "command", ...
        device_kinds: device kinds that its engines run on, preferred first.
        traits: how chat requests must be adapted for its engines.
        takes_key: its engines reject requests without the key that the neuron gives them.
    """

    engine: str
    device_kinds: tuple[DeviceKind, ...] = ()
    traits: EngineTraits = OPENAI
    takes_key: bool = False


class Discovery(WireModel):
    """GET /discovery: facts about a node that rarely change while its neuron runs.

    Attributes:
        harnesses: names of the node's harnesses, in the order of neuron.toml.
        harness_info: details of each harness, by name.
        certificates: TLS certificates of the neuron.
    """

    hostname: Name
    os: Name
    kernel: Name
    cuda_version: Name | None = None
    driver_version: Name | None = None
    devices: Annotated[tuple[Device, ...], Field(max_length=1024)] = ()
    harnesses: Annotated[tuple[Name, ...], Field(max_length=1024)] = ()
    harness_info: dict[str, HarnessInfo] = Field(default_factory=dict)
    neuron_version: Name = ""
    warnings: Annotated[tuple[HostWarning, ...], Field(max_length=1000)] = ()
    certificates: Annotated[tuple[Certificate, ...], Field(max_length=100)] = ()

    _keep_readable = field_validator(
        "devices", "harness_info", "warnings", "certificates", mode="wrap"
    )(keep_readable)


class Health(WireModel):
    """GET /health: the latest readings.

    Attributes:
        uptime_secs: seconds since the neuron started.
        at: Unix seconds at which the devices were read.
    """

    uptime_secs: Seconds
    devices: Annotated[tuple[DeviceReading, ...], Field(max_length=1024)] = ()
    at: UnixSeconds = 0.0

    _keep_readable = field_validator("devices", mode="wrap")(keep_readable)
