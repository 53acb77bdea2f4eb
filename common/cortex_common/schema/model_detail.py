"""Details of one model: the estimate of its model config next to what its loads measured."""

from __future__ import annotations

from cortex_common.clock import Timestamp
from cortex_common.schema.base import WireModel
from cortex_common.schema.operations import PinView


class SizeMeasurement(WireModel):
    """Memory and time that loads of a model took on one node.

    Attributes:
        build: version of the engine.
        loads: number of loads that were measured.
        device_mb: peak MiB on one device.
        last_mb: MiB on one device in the last load.
        load_s: seconds that the last load took.
        at: Unix seconds of the last load.
    """

    node: str
    kind: str
    devices: int
    build: str
    loads: int
    device_mb: int
    last_mb: int
    load_s: float
    at: Timestamp


class ModelDetail(WireModel):
    """Response of GET /operator/v1/models/{name}: the estimate of the model config next to the measurements.

    Attributes:
        vram_mb: MiB over all devices, as estimated by the model config.
        rate: recent requests per second.
        load_s: seconds that a load is expected to take.
        pins: pins set by operators.
    """

    model: str
    harness: str
    vram_mb: int | None = None
    min_devices: int = 1
    priority: int = 0
    rate: float = 0.0
    load_s: float | None = None
    measured: tuple[SizeMeasurement, ...] = ()
    pins: tuple[PinView, ...] = ()
