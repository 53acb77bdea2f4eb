"""What became of orders, as events for the conductor's task and as knowledge."""

from __future__ import annotations

from collections.abc import Callable

from cortex_common.schema.instances import InstanceId
from cortex_server.lifecycle.measurements import Knowledge
from cortex_server.lifecycle.placement_view import Outlook
from cortex_server.placement.pending_loads import Order
from cortex_server.placement.scheduler import Scheduler

Later = Callable[[float], None]
"""An event for the conductor's task, called there with the monotonic time."""


class Outcomes:
    """The carrier's `Reports`.

    Args:
        scheduler: whose events they are.
        outlook: hears which instances are gone.
        knowledge: hears what a node needs for a load.
        post: has an event happen on the conductor's task.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        outlook: Outlook,
        knowledge: Knowledge,
        post: Callable[[Later], None],
    ) -> None:
        self._scheduler = scheduler
        self._outlook = outlook
        self._knowledge = knowledge
        self._post = post

    def room_made(self, instance: InstanceId) -> None:
        """See `Reports.room_made`."""
        self._post(lambda now: self._scheduler.room_made(instance, now))

    def room_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        """See `Reports.room_failed`."""
        self._post(lambda now: self._scheduler.room_failed(instance, stuck, now))

    def left(self, instance: InstanceId) -> None:
        """See `Reports.left`."""
        self._post(lambda _now: self._outlook.left(instance))

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        """See `Reports.admitted`."""
        self._post(lambda now: self._scheduler.admitted(instance, actual, now))

    def refused(self, order: Order, needed_mb: int | None) -> None:
        """See `Reports.refused`."""
        if needed_mb is not None:
            shape = order.plan.shape
            self._knowledge.refused(order.profile, shape.kind, shape.devices, needed_mb)
        self._post(lambda now: self._scheduler.refused(order.instance, now))

    def failed(self, instance: InstanceId, reason: str) -> None:
        """See `Reports.failed`."""
        self._post(lambda now: self._scheduler.failed(instance, reason, now))
