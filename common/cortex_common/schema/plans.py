"""Plans of the operator API: what a load, an eviction, a drain or a defrag would do, and why."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.clock import PreciseTimestamp
from cortex_common.schema.base import StrictWireModel, WireModel
from cortex_common.schema.bounds import Devices, Name, PositiveSeconds, Seconds


class PlanLoadRequest(StrictWireModel):
    """POST /operator/v1/plan/load: return what loading a model would do, without changing anything.

    Attributes:
        model: name or alias.
        node: only consider this node.
        devices: only consider these devices.
        replica: plan an additional instance.
    """

    model: Name
    node: Name | None = None
    devices: Devices = ()
    replica: bool = False


class PlannedEviction(WireModel):
    """An instance that would be evicted.

    Attributes:
        frees_mb: MiB freed on all of its devices.
        in_flight: requests that would have to finish first.
        idle_s: seconds since its last request.
    """

    instance: str
    model: str
    node: str
    frees_mb: int
    in_flight: int
    idle_s: float


class PlannedMove(WireModel):
    """What would happen to one instance when its node is drained.

    Attributes:
        to_node: where a copy would be loaded first; None if it would only be unloaded.
        mb: MiB that it frees on the drained node.
        in_flight: requests that would have to finish first.
        load_s: expected seconds to load the copy.
    """

    instance: str
    model: str
    to_node: str | None = None
    to_devices: tuple[int, ...] = ()
    mb: int
    in_flight: int
    load_s: float | None = None
    reason: str


class DrainPlan(WireModel):
    """POST /operator/v1/plan/drain: what draining a node would do."""

    node: str
    moves: tuple[PlannedMove, ...] = ()


class LedgerLine(WireModel):
    """A device, or a node whose devices are not considered, in a plan.

    Attributes:
        device: index of the device; None for the whole node.
        available_mb: MiB that a new load can reserve.
        chosen: whether the plan uses it.
        reason: why it is not chosen.
        missing_mb: MiB that it lacks.
        reclaimable_mb: MiB on it held by instances that are not pinned.
    """

    node: str
    device: int | None = None
    name: str = ""
    total_mb: int = 0
    available_mb: int = 0
    chosen: bool = False
    reason: str | None = None
    missing_mb: int | None = None
    reclaimable_mb: int = 0


class PlanView(WireModel):
    """What would be done, and why.

    Attributes:
        action: serve (an instance is ready), join (a load is in progress), load, wait or impossible.
        device_mb: MiB required on each device, if known.
        size_source: where that number comes from: measured, node, configured or unknown.
        reason: reason for the choice.
        ledger: every device, with the reason for or against it.
    """

    model: str
    action: str
    node: str | None = None
    devices: tuple[int, ...] = ()
    device_mb: int | None = None
    size_source: str | None = None
    evictions: tuple[PlannedEviction, ...] = ()
    reason: str = ""
    ledger: tuple[LedgerLine, ...] = ()


class DecisionView(WireModel):
    """GET /operator/v1/decisions/{request}: what a request waited for, and the outcome.

    Attributes:
        at: Unix seconds at which the wait ended.
        waited_s: duration of the wait in seconds.
        instance: the instance that became ready; None if there was none.
        reason: why the instance was loaded where it was, or why there was none.
        evicted: instances that were evicted for it.
    """

    at: PreciseTimestamp
    model: str
    waited_s: float
    instance: str | None = None
    reason: str
    evicted: tuple[str, ...] = ()


class DefragRequest(StrictWireModel):
    """POST /operator/v1/plan/defrag: plan moves that create one large free block, and restarts of attached engines.

    Changes nothing.

    Attributes:
        model: free enough memory for this model, and restart no engines. Default: the largest block possible within the
            limits.
        node: create the block on this node.
        max_moves: maximum number of instances to move.
        max_seconds: maximum total seconds of loading for moves and restarts.
        cross_node: allow moves to other nodes.
    """

    model: Name | None = None
    node: Name | None = None
    max_moves: Annotated[int, Field(ge=1, le=8)] = 3
    max_seconds: PositiveSeconds = 600.0
    cross_node: bool = False


class ApplyDefragRequest(StrictWireModel):
    """POST /operator/v1/defrag: carry out exactly the planned moves.

    Attributes:
        request: the request that the plan was made for.
        plan: id of the plan; rejected if the fleet has changed since.
        drain_timeout_s: seconds that requests in flight on a moved instance can continue.
    """

    request: DefragRequest = DefragRequest()
    plan: Name
    drain_timeout_s: Seconds = 300.0


class MoveView(WireModel):
    """A move of one instance to another device: a copy is loaded first, then the original is drained and stopped.

    Attributes:
        mb: MiB that it needs on the new device and frees on the old one.
        load_s: expected seconds to load the copy; the original serves requests meanwhile.
        in_flight: requests in flight on the original.
        interruption_s: seconds during which the model is unavailable; 0, because the copy is loaded first.
    """

    instance: str
    model: str
    node: str
    device: int
    to_node: str
    to_device: int
    mb: int
    load_s: float
    in_flight: int
    interruption_s: float = 0.0


class DeviceCapacityView(WireModel):
    """Available MiB of a device before and after a defrag."""

    node: str
    device: int
    total_mb: int
    before_mb: int
    after_mb: int


class RestartView(WireModel):
    """An attached engine whose memory is fragmented by loads and unloads.

    Attributes:
        cycles: number of loads and unloads since it started.
        models: the models loaded in it, which are loaded again after the restart.
        in_flight: requests that have to finish first.
        interruption_s: expected seconds during which its models are unavailable; requests for them wait.
        chosen: whether the plan restarts it.
        reason: reason for that.
    """

    node: str
    harness: str
    cycles: int
    models: tuple[str, ...] = ()
    in_flight: int = 0
    interruption_s: float = 0.0
    chosen: bool = False
    reason: str = ""


class DefragView(WireModel):
    """The moves of a defrag and their effect, and the engines to restart after them.

    Attributes:
        plan: id of exactly these moves and restarts in exactly this state; empty if there is nothing to do.
        node, device: location of the free block.
        before_mb: size of the largest free block before, in MiB.
        after_mb: size of the block afterwards, in MiB.
        reason: what the plan does, or why there is nothing to do.
        restarts: attached engines with more loads and unloads than `[eviction] defrag_after_cycles`.
        seconds: expected or actual total seconds.
        done: whether the moves and restarts have been carried out.
    """

    plan: str = ""
    node: str | None = None
    device: int | None = None
    before_mb: int = 0
    after_mb: int = 0
    reason: str
    moves: tuple[MoveView, ...] = ()
    restarts: tuple[RestartView, ...] = ()
    devices: tuple[DeviceCapacityView, ...] = ()
    seconds: float | None = None
    done: bool = False
