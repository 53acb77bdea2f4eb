"""The state machine of an instance, its restart policy and its load progress (pure functions)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cortex_common.backoff import Backoff
from cortex_common.errors import Conflict
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec

_TRANSITIONS: dict[InstanceState, frozenset[InstanceState]] = {
    InstanceState.LOADING: frozenset(
        {InstanceState.READY, InstanceState.STOPPING, InstanceState.FAILED}
    ),
    InstanceState.READY: frozenset(
        {
            InstanceState.DRAINING,
            InstanceState.STOPPING,
            InstanceState.LOADING,
            InstanceState.FAILED,
        }
    ),
    InstanceState.DRAINING: frozenset(
        {InstanceState.STOPPING, InstanceState.FAILED, InstanceState.READY}
    ),
    InstanceState.STOPPING: frozenset({InstanceState.STOPPED}),
    InstanceState.STOPPED: frozenset(),
    InstanceState.FAILED: frozenset({InstanceState.STOPPING}),
}

HOLDING_MEMORY = frozenset(
    {
        InstanceState.LOADING,
        InstanceState.READY,
        InstanceState.DRAINING,
        InstanceState.STOPPING,
    }
)
"""States in which an instance can hold memory."""

CRASH_RESET_S = 600.0
"""Seconds of health after which earlier crashes no longer count."""
MAX_CRASHES = 5
_RESTART_BACKOFF = Backoff(initial_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True)
class Instance:
    """An immutable snapshot of one loaded copy of a model.

    Attributes:
        devices: indices of its devices.
        granted_mb: MiB granted on each of them.
        held_mb: MiB on each of them that stay reserved until a crashed engine is restarted; None otherwise.
        budget_mb: MiB on each of them that the engine is configured to use; None if none.
        host_mb: MiB of the host's RAM granted in addition, for layers that stay there.
        measured_mb: MiB measured on each of them, in the same order; empty if not measured.
        peak_mb: highest MiB ever measured on one of them.
        attributed_mb: MiB by which the use of each device rose during the load, where the driver can't attribute
            memory to processes; empty otherwise.
        grows: the engine can allocate more memory after it is ready.
        attached: the engine is not started by this node, and keeps its memory whether or not the model is loaded.
        started_at: Unix seconds at which its load started.
        ready_at: Unix seconds at which it became ready; 0 before.
        served_as: the name that the engine expects in requests, if it differs from the model's.
        failure: how its engine ended if it failed, or the code of the error.
        crashes: number of crashes since it was last healthy for `CRASH_RESET_S`.
    """

    id: InstanceId
    spec: LoadSpec
    devices: tuple[int, ...]
    granted_mb: int
    port: int
    state: InstanceState = InstanceState.LOADING
    measured_mb: tuple[int, ...] = ()
    peak_mb: int = 0
    attributed_mb: tuple[int, ...] = ()
    grows: bool = False
    held_mb: int | None = None
    budget_mb: int | None = None
    host_mb: int = 0
    attached: bool = False
    served_as: str | None = None
    started_at: float = 0.0
    ready_at: float = 0.0
    stage: str | None = None
    progress: float | None = None
    context: int | None = None
    parallel: int | None = None
    engine_version: str | None = None
    load_seconds: float | None = None
    expected_load_s: float | None = None
    crashes: int = 0
    error: str | None = None
    failure: str | None = None


def advance(instance: Instance, to: InstanceState, **changes: Any) -> Instance:
    """Return the instance in its next state.

    Raises:
        Conflict: the transition is not allowed.
    """
    if to not in _TRANSITIONS[instance.state]:
        raise Conflict(
            f"instance {instance.id} is {instance.state}, it can't become {to}",
            details={"state": str(instance.state)},
        )
    if to is not InstanceState.LOADING:
        changes = {"stage": None, "progress": None} | changes
    return replace(instance, state=to, **changes)


def is_same_work(one: LoadSpec, other: LoadSpec) -> bool:
    """Return whether two specs describe the same engine, regardless of their instance ids and reservations.

    A spec that leaves the choice of devices to the node matches any devices.
    """
    ignored: dict[str, Any] = {"instance_id": None, "reserve_mb": None, "config": None}
    if not one.devices or not other.devices:
        ignored["devices"] = ()
    return one.model_copy(update=ignored) == other.model_copy(update=ignored)


def restart_delay_s(instance: Instance, now: float) -> tuple[float, int] | None:
    """Return when a crashed instance can be restarted, and its new crash count.

    Only an instance that was ready before is restarted: one that never loaded would fail again.

    Returns:
        Seconds to wait and the crash count; None if it stays failed.
    """
    if instance.ready_at == 0.0:
        return None
    healthy = now - instance.ready_at >= CRASH_RESET_S
    crashes = 1 if healthy else instance.crashes + 1
    if crashes > MAX_CRASHES:
        return None
    return _RESTART_BACKOFF.delay_s(crashes), crashes


def load_deadline_s(weights_mb: int | None, expected_s: float | None) -> float:
    """Return the seconds without progress after which a load is considered stuck.

    A slow disk reads 50 MiB/s, and a first start can compile kernels for minutes; the limit is at least three times
    the expected load time. Weights of unknown size may have to be downloaded first.
    """
    by_size = 120.0 + (weights_mb / 50.0 if weights_mb is not None else 3600.0)
    return max(by_size, 3.0 * (expected_s or 0.0))


def load_progress(instance: Instance, elapsed_s: float) -> float | None:
    """Estimate the progress, 0 to 0.95, of a load whose engine reports none.

    The estimate is based on the time that the last equal load took on this host, or else on the share of the granted
    memory that is allocated. None if neither is known.
    """
    if instance.expected_load_s:
        progress = elapsed_s / instance.expected_load_s
    elif instance.measured_mb and instance.granted_mb:
        progress = sum(instance.measured_mb) / (instance.granted_mb * len(instance.devices))
    else:
        return None
    return round(min(0.95, progress), 2)
