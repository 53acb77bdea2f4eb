"""The use of each instance, as far as this node learns of it: from its relay, its engines, and gateways' reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable

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

    def record_reports(
        self, reports: Iterable[InstanceUsage], existing: Collection[InstanceId]
    ) -> None:
        """Note the use of the existing instances in a gateway's report."""
        for report in reports:
            if report.instance_id in existing:
                self.record(report.instance_id, report.idle_s)

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
