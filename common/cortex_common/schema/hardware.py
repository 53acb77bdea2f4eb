"""What a neuron tells about its host: the wire of GET /discovery and GET /health."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from cortex_common.net.tls import Certificate
from cortex_common.schema.base import Wire
from cortex_common.schema.engine_traits import OPENAI, EngineTraits


class DeviceKind(StrEnum):
    """What kind of memory and compute a device is."""

    CUDA = "cuda"
    CPU = "cpu"


class Device(Wire):
    """A GPU, or the host's CPU and RAM offered as one.

    Attributes:
        index: position in PCI bus order on this host; what people type. The cpu device comes last.
        uuid: the driver's name for the card, stable over reboots; what engines are started with.
        vram_total_mb: MiB that the driver reports; for a cpu device, the MiB that the host offers.
        compute_capability: such as "9.0"; None where there is none.
        unified: memory is shared with the host, so the numbers are the host's.
    """

    index: int
    uuid: str
    kind: DeviceKind = DeviceKind.CUDA
    name: str
    vram_total_mb: int
    compute_capability: str | None = None
    unified: bool = False


class DeviceHealth(StrEnum):
    """Whether a device can be given work."""

    OK = "ok"
    LOST = "lost"


class DeviceReading(Wire):
    """One device at one moment; a field that the driver does not support is None.

    Attributes:
        vram_used_mb: MiB in use by anybody, as measured.
        vram_free_mb: MiB that nobody uses now. Not a promise: see `vram_reserved_mb`.
        vram_reserved_mb: MiB promised to loads under way and not yet measured as used.
        vram_foreign_mb: MiB used by processes that this neuron did not start.
        vram_headroom_mb: MiB that this host keeps free on this device.
        vram_available_mb: MiB that a new load can be promised: what the node's ledger says.
        reason: why the device is not ok.
    """

    index: int
    vram_used_mb: int
    vram_free_mb: int
    utilization_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    vram_reserved_mb: int = 0
    vram_other_mb: int = 0
    vram_headroom_mb: int = 0
    vram_available_mb: int = 0
    health: DeviceHealth = DeviceHealth.OK
    reason: str | None = None


class HostWarning(Wire):
    """Something on the host that an operator should mend.

    Attributes:
        code: stable, such as "driver_not_loaded".
        message: what is wrong and what to do, for people.
    """

    code: str
    message: str


class HarnessInfo(Wire):
    """What a node reports of one of its harnesses.

    Attributes:
        engine: the kind of its engines, whatever the harness is called: "llamacpp", "vllm", "command", ...
        device_kinds: the kinds of devices that its engines run on, the preferred first.
        traits: how chat requests to its engines must be worded.
    """

    engine: str
    device_kinds: tuple[DeviceKind, ...] = ()
    traits: EngineTraits = OPENAI


class Discovery(Wire):
    """GET /discovery: facts about a node that rarely change while its neuron runs.

    Attributes:
        harnesses: names of the node's harnesses, in the order of neuron.toml.
        harness_info: details of each of them, by name.
        certificates: the TLS certificates that the neuron serves.
    """

    hostname: str
    os: str
    kernel: str
    cuda_version: str | None = None
    driver_version: str | None = None
    devices: tuple[Device, ...] = ()
    harnesses: tuple[str, ...] = ()
    harness_info: dict[str, HarnessInfo] = Field(default_factory=dict)
    neuron_version: str = ""
    warnings: tuple[HostWarning, ...] = ()
    certificates: tuple[Certificate, ...] = ()


class Health(Wire):
    """GET /health: the latest reading.

    Attributes:
        uptime_secs: seconds since the neuron started.
        at: Unix seconds at which the devices were read.
    """

    uptime_secs: float
    devices: tuple[DeviceReading, ...] = ()
    at: float = 0.0
