"""The use of each instance, as far as this node learns of it: from its relay, its engines, and gateways' reports."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.clock import Clock
from cortex_common.schema.instances import InstanceId
from cortex_common.schema.usage import InstanceUsage


class LastUse:
    """When each instance was last used, on the monotonic clock, so that a jump of the host's clock changes nothing.

    Args:
        clock: measures durations.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used_at: dict[InstanceId, float] = {}

    def record(self, instance: InstanceId, idle_s: float = 0.0) -> None:
        """Note that an instance was in use `idle_s` seconds ago; an earlier use than the known one changes nothing."""
        at = self._clock.monotonic() - idle_s
        self._used_at[instance] = max(at, self._used_at.get(instance, at))

    def idle_s(self, instance: InstanceId) -> float | None:
        """Return the seconds since an instance was last used; None if it is not known."""
        at = self._used_at.get(instance)
        return None if at is None else max(0.0, self._clock.monotonic() - at)

    def last_used(self, instance: InstanceId) -> float:
        """Return the Unix seconds at which an instance was last used; 0 if that is not known."""
        idle_s = self.idle_s(instance)
        return 0.0 if idle_s is None else self._clock.unix() - idle_s

    def restore(self, instance: InstanceId, last_used: float) -> None:
        """Take the Unix seconds that an earlier neuron saved."""
        if last_used:
            self.record(instance, max(0.0, self._clock.unix() - last_used))

    def forget(self, instance: InstanceId) -> None:
        """Forget an instance that is gone."""
        self._used_at.pop(instance, None)


@dataclass(frozen=True, slots=True)
class FailureStreak:
    """Requests that an instance has failed since it last answered one.

    Attributes:
        failed: number of them, over all gateways.
        reason: why the last one failed.
    """

    failed: int = 0
    reason: str = ""


class FailureStreaks:
    """The current streak of each instance."""

    def __init__(self) -> None:
        self._by_instance: dict[InstanceId, FailureStreak] = {}

    def record(self, usage: InstanceUsage) -> None:
        """Take a gateway's report."""
        known = self.get(usage.instance_id)
        failed = usage.failed_in_row if usage.succeeded else known.failed + usage.failed
        self._by_instance[usage.instance_id] = FailureStreak(failed, usage.reason)

    def get(self, instance: InstanceId) -> FailureStreak:
        """Return the streak of an instance."""
        return self._by_instance.get(instance, FailureStreak())

    def forget(self, instance: InstanceId) -> None:
        """Start over, because the instance is gone, or its engine was found well or was restarted."""
        self._by_instance.pop(instance, None)
