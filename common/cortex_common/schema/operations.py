"""Requests and answers of the operator API (/operator/v1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.clock import Timestamp
from cortex_common.schema.base import StrictWireModel, WireModel
from cortex_common.schema.fleet import ModelState

LONGEST_S = 100 * 365 * 86_400.0
"""Seconds beyond which a time is a slip, and no date."""


class LoadModel(StrictWireModel):
    """POST /operator/v1/models/load.

    Attributes:
        model: name or alias.
        node: load it there; the gateway chooses when absent.
        devices: indices on that node.
        wait: answer only when the model is ready.
        timeout_s: how long to wait.
        pin: protect it from eviction, on `node` or wherever it goes.
        another: load a further instance, whatever is ready.
        ttl_s: seconds without a request after which it is unloaded, instead of its profile's; 0 never.
    """

    model: str
    node: str | None = None
    devices: tuple[int, ...] = ()
    ttl_s: Annotated[float, Field(ge=0)] | None = None
    wait: bool = False
    pin: bool = False
    another: bool = False
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0


class UnloadModel(StrictWireModel):
    """POST /operator/v1/models/unload.

    Attributes:
        model: name or alias.
        drain_timeout_s: how long requests in flight may go on before the engine is stopped.
    """

    model: str
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0


class EvictModel(StrictWireModel):
    """POST /operator/v1/models/evict: end one instance; the gateway may load it again.

    Attributes:
        model: name or alias.
        node: the instance there; the one that lay idle longest when absent.
        instance: this instance.
        drain_timeout_s: how long its requests may go on; beyond it nothing is ended.
    """

    model: str
    node: str | None = None
    instance: str | None = None
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0


class PinModel(StrictWireModel):
    """POST /operator/v1/models/pin: protect a model from eviction, defrag and idle unload.

    Attributes:
        model: name or alias.
        node: only there.
        for_s: seconds after which the pin ends by itself; None for good.
    """

    model: str
    node: str | None = None
    for_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None


class UnpinModel(StrictWireModel):
    """POST /operator/v1/models/unpin: end pins that operators set; those of profiles stay.

    Attributes:
        model: name or alias.
        node: the pin there; all of the model's when absent.
    """

    model: str
    node: str | None = None


class PinView(WireModel):
    """A pin that an operator set.

    Attributes:
        until: Unix seconds at which it ends; None never.
    """

    model: str
    node: str | None = None
    until: Timestamp | None = None


class NodeRequest(StrictWireModel):
    """POST /operator/v1/nodes/cordon and /uncordon."""

    node: str


class DrainNode(StrictWireModel):
    """POST /operator/v1/nodes/drain: cordon a node and move or unload all its instances.

    Attributes:
        node: its name.
        timeout_s: how long requests in flight may go on.
    """

    node: str
    timeout_s: Annotated[float, Field(ge=0)] = 300.0


class NodeAction(WireModel):
    """What became of a node.

    Attributes:
        moved: models that were loaded elsewhere first.
        unloaded: models that were not, as no other node had room.
        kept: models that stay, because they are busy still.
    """

    node: str
    cordoned: bool
    moved: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class MeasuredSize(WireModel):
    """What loads of a model took on one node.

    Attributes:
        build: version of the engine.
        loads: how many were measured.
        device_mb: the most MiB on one device.
        last_mb: those of the last load.
        load_s: seconds of the last load.
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
    """GET /operator/v1/models/{name}: the profile's estimate beside what was measured.

    Attributes:
        vram_mb: MiB over all its devices, as its profile guesses.
        rate: requests a second lately.
        load_s: seconds that a load is expected to take.
        pins: set by operators.
    """

    model: str
    harness: str
    vram_mb: int | None = None
    min_devices: int = 1
    priority: int = 0
    rate: float = 0.0
    load_s: float | None = None
    measured: tuple[MeasuredSize, ...] = ()
    pins: tuple[PinView, ...] = ()


class Reloaded(WireModel):
    """What a reload of the configuration changed.

    Attributes:
        changed: keys of [gateway] and other tables, as "gateway.max_body_mb", "keys", "models", and files of nodes'
            secrets and certificates that were replaced.
        restart: those of them that take effect only when the gateway is started anew.
    """

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class ModelAction(WireModel):
    """What became of a model.

    Attributes:
        model: its id.
        state: its state now.
        nodes: where it stands.
        seconds: what the action took, where it was waited for.
        vram_mb: MiB it uses, once measured.
    """

    model: str
    state: ModelState
    nodes: tuple[str, ...] = ()
    seconds: float | None = None
    vram_mb: int | None = None
