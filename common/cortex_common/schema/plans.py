"""Plans of the operator API: what a load, an eviction, a drain or a defragmentation would do, and why."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.clock import ExactMoment
from cortex_common.schema.base import StrictWire, Wire


class PlanLoad(StrictWire):
    """POST /operator/v1/plan/load: what would be done to load a model. Changes nothing.

    Attributes:
        model: name or alias.
        node: only there.
        devices: only these.
        another: a further instance.
    """

    model: str
    node: str | None = None
    devices: tuple[int, ...] = ()
    another: bool = False


class PlannedEviction(Wire):
    """An instance that would go.

    Attributes:
        frees_mb: MiB that it frees over all its devices.
        in_flight: requests that would be waited for.
        idle_s: seconds since its last request.
    """

    instance: str
    model: str
    node: str
    frees_mb: int
    in_flight: int
    idle_s: float


class PlannedMove(Wire):
    """What would become of one instance when its node is emptied.

    Attributes:
        to_node: where a copy would be loaded first; None when it would only be ended.
        mb: MiB that it frees here.
        in_flight: requests that would be waited for.
        load_s: seconds that its copy is expected to load.
    """

    instance: str
    model: str
    to_node: str | None = None
    to_devices: tuple[int, ...] = ()
    mb: int
    in_flight: int
    load_s: float | None = None
    why: str


class DrainPlan(Wire):
    """POST /operator/v1/plan/drain: what emptying a node would do."""

    node: str
    moves: tuple[PlannedMove, ...] = ()


class LedgerLine(Wire):
    """One device, or a node whose devices are not considered, in a plan.

    Attributes:
        device: index; None for the whole node.
        available_mb: MiB that a new load can be promised.
        chosen: the plan uses it.
        reason: why it is not chosen.
        missing_mb: MiB that it lacks.
        reclaimable_mb: MiB on it that unpinned instances hold.
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


class PlanView(Wire):
    """What would be done, and why.

    Attributes:
        action: serve (it is ready), join (a load is under way), load, wait or impossible.
        device_mb: MiB that it takes on each of its devices, as far as known.
        size_source: measured, node, configured or unknown.
        why: the reason for the choice.
        ledger: every device with what speaks for or against it.
    """

    model: str
    action: str
    node: str | None = None
    devices: tuple[int, ...] = ()
    device_mb: int | None = None
    size_source: str | None = None
    evictions: tuple[PlannedEviction, ...] = ()
    why: str = ""
    ledger: tuple[LedgerLine, ...] = ()


class DecisionView(Wire):
    """GET /operator/v1/decisions/{request}: what a request waited for, and what became of that.

    Attributes:
        at: Unix seconds at which the wait ended.
        waited_s: how long it was.
        instance: that became ready for it; None when it waited in vain.
        why: why the instance was loaded where it was, or why there was none.
        evicted: instances that went for it.
    """

    at: ExactMoment
    model: str
    waited_s: float
    instance: str | None = None
    why: str
    evicted: tuple[str, ...] = ()


class DefragRequest(StrictWire):
    """POST /operator/v1/plan/defrag: moves that make one large free block, and restarts of attached engines.

    Changes nothing.

    Attributes:
        model: make room for this model, and restart nothing; the largest block that the budget can make when absent.
        node: make the block there.
        max_moves: at most so many instances move.
        max_seconds: at most so many seconds of loading, moves and restarts together.
        across: instances may move to other nodes.
    """

    model: str | None = None
    node: str | None = None
    max_moves: Annotated[int, Field(ge=1, le=8)] = 3
    max_seconds: Annotated[float, Field(gt=0)] = 600.0
    across: bool = False


class ApplyDefrag(StrictWire):
    """POST /operator/v1/defrag: carry out exactly the moves that were shown.

    Attributes:
        request: the request that was planned for.
        plan: id of the plan that was shown; refused when the fleet has changed since.
    """

    request: DefragRequest = DefragRequest()
    plan: str
    drain_timeout_s: Annotated[float, Field(ge=0)] = 300.0


class MoveView(Wire):
    """One instance that changes its device: a copy is loaded first, then the original drained and ended.

    Attributes:
        mb: MiB that it takes and frees.
        load_s: seconds that its copy is expected to load; requests go on meanwhile.
        in_flight: requests that end on the original.
        interruption_s: seconds for which the model can't be asked; 0 as the copy comes first.
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


class DeviceCapacityView(Wire):
    """A device before and after a defrag, in MiB available."""

    node: str
    device: int
    total_mb: int
    before_mb: int
    after_mb: int


class RestartView(Wire):
    """An engine of somebody else whose memory its loads and unloads have scattered.

    Attributes:
        cycles: how many there were since it started.
        models: what is in it, and is loaded again afterwards.
        in_flight: requests that are waited for first.
        interruption_s: seconds that its models are expected to be away; requests for them wait.
        chosen: it is part of the plan.
        why: the reason for that.
    """

    node: str
    harness: str
    cycles: int
    models: tuple[str, ...] = ()
    in_flight: int = 0
    interruption_s: float = 0.0
    chosen: bool = False
    why: str = ""


class DefragView(Wire):
    """Moves and what they gain, and engines to be restarted after them.

    Attributes:
        plan: id of exactly these moves and restarts on exactly this state; empty when there is nothing to be done.
        node, device: where the block comes to be.
        before_mb: the largest free block before.
        after_mb: the block afterwards.
        why: what the plan does, or why there is none.
        restarts: attached engines with more loads and unloads than `[eviction] defrag_after_cycles`.
        done: the moves and restarts have been made.
    """

    plan: str = ""
    node: str | None = None
    device: int | None = None
    before_mb: int = 0
    after_mb: int = 0
    why: str
    moves: tuple[MoveView, ...] = ()
    restarts: tuple[RestartView, ...] = ()
    devices: tuple[DeviceCapacityView, ...] = ()
    seconds: float | None = None
    done: bool = False
