"""The fleet as placement sees it: a snapshot with the decisions that it does not show yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.measurements import CurrentStats, Measurements
from cortex_server.lifecycle.pins import PinStore
from cortex_server.placement.capacity import CapacityCache
from cortex_server.placement.overlay import Overlay, Reservation
from cortex_server.placement.planner import dry_run
from cortex_server.placement.plans import Plan
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState, PlacementRequest


class PlacementView:
    """Builds the cluster state that plans are made from.

    Args:
        measurements: sizes and statistics of models.
        pins: pins set by operators.
        clock: for statistics at the current time.
    """

    def __init__(self, measurements: Measurements, pins: PinStore, clock: Clock) -> None:
        self._measurements = measurements
        self._pins = pins
        self._clock = clock
        self._model_configs: Mapping[str, ModelConfig] = {}
        self._capacity_cache = CapacityCache()
        self._removed: frozenset[InstanceId] = frozenset()
        self._unloading: frozenset[InstanceId] = frozenset()
        self._restarting: frozenset[Reservation] = frozenset()
        self._stats = CurrentStats(measurements, {}, clock.monotonic())

    def use_model_configs(self, model_configs: Mapping[str, ModelConfig]) -> None:
        """Replace the model configs, by model id."""
        self._model_configs = model_configs
        self._stats = CurrentStats(self._measurements, model_configs, self._clock.monotonic())

    def refresh(self, reported: frozenset[InstanceId]) -> None:
        """Forget removed instances that no snapshot shows any longer, and update the statistics.

        All rates decay at the same pace, so their order does not change between two calls a second apart.
        """
        self._removed &= reported
        self._stats = CurrentStats(self._measurements, self._model_configs, self._clock.monotonic())

    def mark_removed(self, instance: InstanceId) -> None:
        """Treat an instance as gone, even while an old snapshot shows it."""
        self._removed |= {instance}

    def is_unloading(self, instance: InstanceId) -> bool:
        """Return whether an instance is being unloaded."""
        return instance in self._unloading

    @contextlib.contextmanager
    def unloading(self, instances: Iterable[InstanceId]) -> Iterator[None]:
        """Mark instances as being unloaded in the meantime."""
        ids = frozenset(instances)
        self._unloading |= ids
        try:
            yield
        finally:
            self._unloading -= ids

    @contextlib.contextmanager
    def restarting(self, instances: Iterable[InstanceView]) -> Iterator[None]:
        """Mark instances as restarting where they are: requests for their models wait for them."""
        reservations = frozenset(
            Reservation(InstanceId(f"{i.id} restarted"), i.model, i.node, (), 0) for i in instances
        )
        self._restarting |= reservations
        try:
            yield
        finally:
            self._restarting -= reservations

    def cluster(self, snapshot: FleetSnapshot, overlay: Overlay) -> ClusterState:
        """Return the cluster state that plans are made from.

        Args:
            snapshot: the fleet.
            overlay: the scheduler's decisions.
        """
        overlay = replace(
            overlay,
            reservations=(*overlay.reservations, *self._restarting),
            draining=overlay.draining | self._unloading,
            removed=self._removed,
            pins=self._pins.active,
        )
        return ClusterState(
            capacities=self._capacity_cache.capacities(snapshot, overlay),
            now=snapshot.at,
            sizes=self._measurements.sizes,
            stats=self._stats,
            nodes_with_weights=self._measurements.nodes_with_weights,
        )


class PlanService:
    """Plans without carrying anything out.

    Args:
        scheduler: decisions so far and recent failures.
        placement_view: builds the cluster state.
        fleet: live state of the nodes.
        clock: for the age of failures.
    """

    def __init__(
        self, scheduler: Scheduler, placement_view: PlacementView, fleet: Fleet, clock: Clock
    ) -> None:
        self._scheduler = scheduler
        self._placement_view = placement_view
        self._fleet = fleet
        self._clock = clock

    @property
    def policy(self) -> Policy:
        """The operator's settings."""
        return self._scheduler.policy

    def cluster(self, reservations: tuple[Reservation, ...] = ()) -> ClusterState:
        """Return the cluster state now, as if these loads had been decided as well."""
        overlay = self._scheduler.overlay()
        overlay = replace(overlay, reservations=(*overlay.reservations, *reservations))
        return self._placement_view.cluster(self._fleet.node_snapshot, overlay)

    def plan(
        self,
        request: PlacementRequest,
        reservations: tuple[Reservation, ...] = (),
        *,
        force: bool = False,
    ) -> tuple[Plan, ClusterState]:
        """Return what would be done for a request now, and the cluster state that this was decided on.

        Args:
            request: the model to be placed.
            reservations: loads to assume; see `cluster`.
            force: see `LoadRequest.force`.
        """
        cluster, now = self.cluster(reservations), self._clock.monotonic()
        failures = self._scheduler.failures
        return dry_run(request, cluster, self.policy, failures, now, force=force), cluster

    def recent_failures(self, model: str) -> Mapping[str, str]:
        """Return what recently went wrong with a model, by node, as text for people."""
        return self._scheduler.failures.describe(model, self._clock.monotonic())
