"""The life of one instance as a state machine, and when a crashed one may come back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cortex_common.errors import Conflict
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec

_NEXT: dict[InstanceState, frozenset[InstanceState]] = {
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

OCCUPIED = frozenset(
    {
        InstanceState.LOADING,
        InstanceState.READY,
        InstanceState.DRAINING,
        InstanceState.STOPPING,
    }
)
"""States in which an instance holds memory, or may."""

CRASHES_FORGIVEN_AFTER_S = 600.0
MOST_CRASHES = 5
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Instance:
    """One loaded copy of a model.

    Attributes:
        devices: indices of its devices.
        promised_mb: MiB promised on each of them.
        measured_mb: MiB measured on each of them, in their order; empty when not measured.
        peak_mb: the most that was ever measured on one of them.
        attached: someone else runs the engine, which holds the memory whether or not the model is loaded.
        started_at: Unix seconds at which its load began.
        ready_at: Unix seconds at which it became ready; 0 before.
        served_as: the name that the engine wants in requests, where it is not the model's.
        crashes: how often it crashed since it was last healthy for long.
    """

    id: InstanceId
    spec: LoadSpec
    devices: tuple[int, ...]
    granted_mb: int
    port: int
    state: InstanceState = InstanceState.LOADING
    measured_mb: tuple[int, ...] = ()
    peak_mb: int = 0
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


def advance(instance: Instance, to: InstanceState, **changes: Any) -> Instance:
    """The instance in its next state.

    Raises:
        Conflict: that state does not follow from the present one.
    """
    if to not in _NEXT[instance.state]:
        raise Conflict(
            f"instance {instance.id} is {instance.state}, it can't become {to}",
            details={"state": str(instance.state)},
        )
    if to is not InstanceState.LOADING:
        changes = {"stage": None, "progress": None} | changes
    return replace(instance, state=to, **changes)


def same_work(one: LoadSpec, other: LoadSpec) -> bool:
    """Whether two specs ask for the same engine, whatever their instances are called.

    Devices that the caller left to the node match any.
    """
    blank: dict[str, Any] = {"instance_id": None}
    if not one.devices or not other.devices:
        blank["devices"] = ()
    return one.model_copy(update=blank) == other.model_copy(update=blank)


def restart_delay_s(instance: Instance, now: float) -> tuple[float, int] | None:
    """When a crashed instance may start again, and its new count of crashes.

    Only an instance that was ready before comes back: one that never loaded would fail again.

    Returns:
        Seconds to wait and the count; None when it stays failed.
    """
    if instance.ready_at == 0.0:
        return None
    healthy = now - instance.ready_at >= CRASHES_FORGIVEN_AFTER_S
    crashes = 1 if healthy else instance.crashes + 1
    if crashes > MOST_CRASHES:
        return None
    return min(_FIRST_DELAY_S * 2.0 ** (crashes - 1), _LONGEST_DELAY_S), crashes


def load_deadline_s(weights_mb: int | None, expected_s: float | None) -> float:
    """Seconds without progress after which a load counts as stuck.

    A slow disk reads 50 MiB a second, a first start compiles kernels for minutes; what took long before may take
    three times as long again. Unknown weights may still have to be downloaded.
    """
    by_size = 120.0 + (weights_mb / 50.0 if weights_mb is not None else 3600.0)
    return max(by_size, 3.0 * (expected_s or 0.0))


def load_progress(instance: Instance, past_s: float) -> float | None:
    """How far a load is whose engine does not tell, 0 to 0.95.

    By the time that the last such load took on this host; the first time by the memory that it has taken of what it
    was promised. None when neither is known.
    """
    if instance.expected_load_s:
        done = past_s / instance.expected_load_s
    elif instance.measured_mb and instance.granted_mb:
        done = sum(instance.measured_mb) / (instance.granted_mb * len(instance.devices))
    else:
        return None
    return round(min(0.95, done), 2)
