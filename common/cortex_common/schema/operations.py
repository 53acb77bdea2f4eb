"""The operations of the operator API (/operator/v1): their requests, their responses, and the table that lists them.

`OPERATIONS` is the one place where an operation is declared. The gateway's routes, `OperatorClient`, the commands of
`cortex` and the actions of `cortex top` are made from its entries, so that names, paths and help texts agree.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from cortex_common.clock import Timestamp
from cortex_common.schema.base import StrictWireModel, WireModel
from cortex_common.schema.bounds import Devices, Name, PositiveSeconds, Seconds
from cortex_common.schema.fleet import ModelState
from cortex_common.schema.operation import Operation, OperationTarget
from cortex_common.schema.plans import (
    ApplyDefragRequest,
    DefragRequest,
    DefragView,
    DrainPlan,
    PlanLoadRequest,
    PlannedEviction,
    PlanView,
)
from cortex_common.schema.requests import CancelRequest, RequestView


class LoadModelRequest(StrictWireModel):
    """Request of the operation load.

    Attributes:
        model: name or alias.
        node: node to load on; the gateway chooses when absent.
        devices: device indices on that node.
        ttl_s: seconds without a request after which the model is unloaded, overriding its model config; 0 for never.
        wait: respond only when the model is ready.
        pin: protect the model from eviction, on `node` or on whichever node it is placed.
        replica: load an additional instance even when one is ready.
        timeout_s: seconds to wait for the load.
    """

    model: Name
    node: Name | None = None
    devices: Devices = ()
    ttl_s: Seconds | None = None
    wait: bool = False
    pin: bool = False
    replica: bool = False
    timeout_s: PositiveSeconds = 1800.0


class UnloadModelRequest(StrictWireModel):
    """Request of the operation unload.

    Attributes:
        model: name or alias.
        drain_timeout_s: seconds that requests in flight get to finish before the engines are stopped.
    """

    model: Name
    drain_timeout_s: Seconds = 60.0


class EvictModelRequest(StrictWireModel):
    """Request of the operations evict and plan_evict.

    Attributes:
        model: name or alias.
        node: evict the instance on this node; the instance that has been idle longest when absent.
        instance: id of the instance to evict.
        drain_timeout_s: seconds to wait for the instance's requests; nothing is evicted when they take longer.
    """

    model: Name
    node: Name | None = None
    instance: Name | None = None
    drain_timeout_s: Seconds = 60.0


class PinModelRequest(StrictWireModel):
    """Request of the operation pin.

    Attributes:
        model: name or alias.
        node: pin the model on this node only.
        for_s: seconds after which the pin expires; None for no expiry.
    """

    model: Name
    node: Name | None = None
    for_s: PositiveSeconds | None = None


class UnpinModelRequest(StrictWireModel):
    """Request of the operation unpin.

    Attributes:
        model: name or alias.
        node: remove the pin on this node; all of the model's pins when absent.
    """

    model: Name
    node: Name | None = None


class ForgetSizeRequest(StrictWireModel):
    """Request of the operation forget_size.

    Attributes:
        model: name or alias.
    """

    model: Name


class ForgetSizeResult(WireModel):
    """Result of the operation forget_size.

    Attributes:
        model: id of the model.
        nodes: nodes that had measured it, and have forgotten that.
        unreachable: nodes that could not be asked.
    """

    model: str
    nodes: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()


class PinView(WireModel):
    """A pin that an operator set.

    Attributes:
        node: node that the pin applies to; None for any node.
        until: Unix seconds at which the pin expires; None for no expiry.
    """

    model: str
    node: str | None = None
    until: Timestamp | None = None


class NodeRequest(StrictWireModel):
    """Request of the operations cordon, uncordon and plan_drain."""

    node: Name


class DrainNodeRequest(StrictWireModel):
    """Request of the operation drain.

    Attributes:
        node: name of the node.
        timeout_s: seconds that requests in flight get to finish.
    """

    node: Name
    timeout_s: Seconds = 300.0


class NodeResult(WireModel):
    """Result of an operation on a node.

    Attributes:
        moved: models that were loaded on other nodes first.
        unloaded: models that were unloaded because no other node had capacity.
        kept: models that stay because they are still busy.
    """

    node: str
    cordoned: bool
    moved: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class ReloadConfigRequest(StrictWireModel):
    """Request of the operation reload; it has no fields."""


class ReloadResult(WireModel):
    """Result of reloading the configuration.

    Attributes:
        changed: keys of [gateway] and other tables, such as "gateway.max_body_mb", "keys" or "models", and files with
            secrets or certificates of nodes that were replaced.
        restart: those of them that take effect only after a restart of the gateway.
    """

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class ModelResult(WireModel):
    """Result of an operation on a model.

    Attributes:
        model: id of the model.
        state: its state now.
        nodes: nodes that it is placed on.
        seconds: duration of the operation, when it was waited for.
        vram_mb: MiB that it uses, once measured.
    """

    model: str
    state: ModelState
    nodes: tuple[str, ...] = ()
    seconds: float | None = None
    vram_mb: int | None = None


# -- the table ---------------------------------------------------------------------------------------

_MODEL_ACTION = TypeAdapter(ModelResult)
_NODE_ACTION = TypeAdapter(NodeResult)
_DEFRAG = TypeAdapter(DefragView)
_ENGINE_STOP_S = 130.0
"""Seconds, after the drain timeout, in which engines are stopped and their memory is measured as free."""

LOAD: Operation[LoadModelRequest, ModelResult] = Operation(
    "load",
    "/models/load",
    OperationTarget.MODEL,
    LoadModelRequest,
    _MODEL_ACTION,
    "Load a model",
    "Responds when the load has started, or with `wait` when the model is ready.",
    "loaded",
    timeout_s=lambda request: request.timeout_s + 10.0 if request.wait else 60.0,
)
UNLOAD: Operation[UnloadModelRequest, ModelResult] = Operation(
    "unload",
    "/models/unload",
    OperationTarget.MODEL,
    UnloadModelRequest,
    _MODEL_ACTION,
    "Unload a model",
    "Drains and stops all of its instances. The next request for the model loads it again.",
    "unloaded",
    timeout_s=lambda request: request.drain_timeout_s + _ENGINE_STOP_S,
)
EVICT: Operation[EvictModelRequest, ModelResult] = Operation(
    "evict",
    "/models/evict",
    OperationTarget.MODEL,
    EvictModelRequest,
    _MODEL_ACTION,
    "Evict one instance of a model",
    "Drains and stops one instance. The gateway can load the model again, on the same or another node.",
    "evicted",
    timeout_s=lambda request: request.drain_timeout_s + _ENGINE_STOP_S,
)
PIN: Operation[PinModelRequest, PinView] = Operation(
    "pin",
    "/models/pin",
    OperationTarget.MODEL,
    PinModelRequest,
    TypeAdapter(PinView),
    "Protect a model from eviction",
    "Also protects it from defragmentation and idle unloading, for a limited time or until it is unpinned. "
    "Pins survive a restart of the gateway.",
    "pinned",
)
UNPIN: Operation[UnpinModelRequest, tuple[PinView, ...]] = Operation(
    "unpin",
    "/models/unpin",
    OperationTarget.MODEL,
    UnpinModelRequest,
    TypeAdapter(tuple[PinView, ...]),
    "Remove pins of a model",
    "Responds with the pins that remain. Pins of models.toml are not removed.",
    "unpinned",
)
FORGET_SIZE: Operation[ForgetSizeRequest, ForgetSizeResult] = Operation(
    "forget_size",
    "/models/forget-size",
    OperationTarget.MODEL,
    ForgetSizeRequest,
    TypeAdapter(ForgetSizeResult),
    "Forget the measured sizes of a model",
    "The next load reserves what the model config or an estimate says, and is measured again. "
    "Use this after the weights or the engine changed in a way that its version does not show.",
    "forgot the sizes of",
)
CORDON: Operation[NodeRequest, NodeResult] = Operation(
    "cordon",
    "/nodes/cordon",
    OperationTarget.NODE,
    NodeRequest,
    _NODE_ACTION,
    "Stop placing instances on a node",
    "Its current instances keep serving.",
    "cordoned",
)
UNCORDON: Operation[NodeRequest, NodeResult] = Operation(
    "uncordon",
    "/nodes/uncordon",
    OperationTarget.NODE,
    NodeRequest,
    _NODE_ACTION,
    "Resume placing instances on a node",
    "New instances can be placed on it again.",
    "uncordoned",
)
DRAIN: Operation[DrainNodeRequest, NodeResult] = Operation(
    "drain",
    "/nodes/drain",
    OperationTarget.NODE,
    DrainNodeRequest,
    _NODE_ACTION,
    "Move or unload everything on a node",
    "Cordons the node, loads its models on other nodes that have capacity, and unloads them from it.",
    "drained",
    timeout_s=lambda request: request.timeout_s + 1900.0,
)
DEFRAG: Operation[ApplyDefragRequest, DefragView] = Operation(
    "defrag",
    "/defrag",
    OperationTarget.FLEET,
    ApplyDefragRequest,
    _DEFRAG,
    "Move instances to consolidate free memory",
    "Carries out exactly the moves of a plan. Fails with `conflict` when the fleet has changed since then.",
    "defragmented",
    timeout_s=lambda apply: (
        apply.request.max_seconds * 3 + apply.request.max_moves * apply.drain_timeout_s + 300.0
    ),
)
PLAN_LOAD: Operation[PlanLoadRequest, PlanView] = Operation(
    "plan_load",
    "/plan/load",
    OperationTarget.MODEL,
    PlanLoadRequest,
    TypeAdapter(PlanView),
    "Show how a model would be loaded",
    "Responds with the plan and the verdict on every device. Changes nothing.",
    changes=False,
)
PLAN_EVICT: Operation[EvictModelRequest, PlannedEviction] = Operation(
    "plan_evict",
    "/plan/evict",
    OperationTarget.MODEL,
    EvictModelRequest,
    TypeAdapter(PlannedEviction),
    "Show which instance would be evicted",
    "Responds with the memory that the eviction frees and the requests that it affects. Changes nothing.",
    changes=False,
)
PLAN_DRAIN: Operation[NodeRequest, DrainPlan] = Operation(
    "plan_drain",
    "/plan/drain",
    OperationTarget.NODE,
    NodeRequest,
    TypeAdapter(DrainPlan),
    "Show how a node would be drained",
    "Responds with the destination of each of its instances. Changes nothing.",
    changes=False,
)
PLAN_DEFRAG: Operation[DefragRequest, DefragView] = Operation(
    "plan_defrag",
    "/plan/defrag",
    OperationTarget.FLEET,
    DefragRequest,
    _DEFRAG,
    "Show the moves that consolidate free memory",
    "Responds with the moves, the restarts of attached engines that are due, and the free memory before and after. "
    "Changes nothing.",
    changes=False,
)
CANCEL: Operation[CancelRequest, RequestView] = Operation(
    "cancel",
    "/requests/cancel",
    OperationTarget.REQUEST,
    CancelRequest,
    TypeAdapter(RequestView),
    "Cancel a request",
    "Its client receives an error and its engine stops generating.",
    "cancelled",
)
RELOAD: Operation[ReloadConfigRequest, ReloadResult] = Operation(
    "reload",
    "/config/reload",
    OperationTarget.GATEWAY,
    ReloadConfigRequest,
    TypeAdapter(ReloadResult),
    "Reload the gateway's configuration",
    "Reads all files again. If one is invalid, nothing changes and the error says why.",
    "reloaded",
    timeout_s=lambda _request: 30.0,
)

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    *(LOAD, UNLOAD, EVICT, PIN, UNPIN, FORGET_SIZE),
    *(CORDON, UNCORDON, DRAIN, DEFRAG),
    *(PLAN_LOAD, PLAN_EVICT, PLAN_DRAIN, PLAN_DEFRAG),
    *(CANCEL, RELOAD),
)
