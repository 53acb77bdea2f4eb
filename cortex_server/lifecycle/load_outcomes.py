"""Turns the executor's outcomes into scheduler events on the controller's task."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from cortex_common.schema.instances import InstanceId
from cortex_server.lifecycle.executor import ExecutorEvents
from cortex_server.lifecycle.measurements import Measurements
from cortex_server.lifecycle.placement_view import PlacementView
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.scheduler import Scheduler

Event = Callable[[float], None]
"""An event to be handled on the controller's task, where it is called with the monotonic time."""


class LoadOutcomes(ExecutorEvents):
    """The executor's events, forwarded to the scheduler.

    Args:
        scheduler: receives them.
        placement_view: receives the instances that are gone.
        measurements: receives the memory that a node needs for a load.
        post: schedules an event on the controller's task.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        placement_view: PlacementView,
        measurements: Measurements,
        post: Callable[[Event], None],
    ) -> None:
        self._scheduler = scheduler
        self._placement_view = placement_view
        self._measurements = measurements
        self._post = post

    @override
    def evicted(self, instance: InstanceId) -> None:
        self._post(lambda now: self._scheduler.evicted(instance, now))

    @override
    def eviction_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        self._post(lambda now: self._scheduler.eviction_failed(instance, stuck, now))

    @override
    def removed(self, instance: InstanceId) -> None:
        self._post(lambda _now: self._placement_view.mark_removed(instance))

    @override
    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        self._post(lambda now: self._scheduler.admitted(instance, actual, now))

    @override
    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        if needed_mb is not None:
            shape = order.plan.shape
            self._measurements.record_refusal(
                order.model_config, shape.kind, shape.devices, order.plan.card, needed_mb
            )
        self._post(lambda now: self._scheduler.refused(order.instance, now))

    @override
    def failed(self, instance: InstanceId, reason: str) -> None:
        self._post(lambda now: self._scheduler.failed(instance, reason, now))
