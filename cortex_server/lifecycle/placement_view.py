"""The fleet as placement sees it: a snapshot with what is decided, and not yet visible there, laid over it."""

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
from cortex_server.placement.capacity import ClusterCapacity, Overlay, Reservation
from cortex_server.placement.planner import Plan, dry_run
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState, PlacementRequest


class PlacementView:
    """See the module.

    Args:
        knowledge: of models, from what they did.
        pins: set by operators.
        clock: for how models stand now.
    """

    def __init__(self, measurements: Measurements, pins: PinStore, clock: Clock) -> None:
        self._measurements = measurements
        self._pins = pins
        self._clock = clock
        self._model_configs: Mapping[str, ModelConfig] = {}
        self._rooms = ClusterCapacity()
        self._gone: frozenset[InstanceId] = frozenset()
        self._leaving: frozenset[InstanceId] = frozenset()
        self._returning: frozenset[Reservation] = frozenset()
        self._stats = CurrentStats(measurements, {}, clock.monotonic())

    def use_model_configs(self, model_configs: Mapping[str, ModelConfig]) -> None:
        """Replace the profiles, by model id."""
        self._model_configs = model_configs
        self._stats = CurrentStats(self._measurements, model_configs, self._clock.monotonic())

    def refresh(self, visible: frozenset[InstanceId]) -> None:
        """Forget the instances that no snapshot shows any more, and see anew how models stand.

        All of them are forgotten about at the same pace, so between two calls a second apart none overtakes another.
        """
        self._gone &= visible
        self._stats = CurrentStats(self._measurements, self._model_configs, self._clock.monotonic())

    def left(self, instance: InstanceId) -> None:
        """An instance is gone, whatever an old snapshot says."""
        self._gone |= {instance}

    def is_leaving(self, instance: InstanceId) -> bool:
        """Whether it is being unloaded."""
        return instance in self._leaving

    @contextlib.contextmanager
    def leaving(self, instances: Iterable[InstanceId]) -> Iterator[None]:
        """These are being unloaded meanwhile."""
        ids = frozenset(instances)
        self._leaving |= ids
        try:
            yield
        finally:
            self._leaving -= ids

    @contextlib.contextmanager
    def returning(self, instances: Iterable[InstanceView]) -> Iterator[None]:
        """These come back by themselves, where they were: who asks for their models meanwhile waits for that."""
        reservations = frozenset(
            Reservation(InstanceId(f"{i.id} again"), i.model, i.node, (), 0) for i in instances
        )
        self._returning |= reservations
        try:
            yield
        finally:
            self._returning -= reservations

    def cluster(self, snapshot: FleetSnapshot, overlay: Overlay) -> ClusterState:
        """What plans are made from.

        Args:
            snapshot: the fleet.
            overlay: what the scheduler has decided.
        """
        overlay = replace(
            overlay,
            reservations=(*overlay.reservations, *self._returning),
            leaving=overlay.leaving | self._leaving,
            gone=self._gone,
            pins=self._pins.held,
        )
        return ClusterState(
            capacities=self._rooms.of(snapshot, overlay),
            now=snapshot.at,
            sizes=self._measurements.sizes,
            stats=self._stats,
            stored=self._measurements.stored,
        )


class PlanService:
    """See the module.

    Args:
        scheduler: what is decided already, and what went wrong lately.
        outlook: how placement sees the fleet.
        fleet: the live state.
        clock: for how long ago things were.
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
        """The operator's choices."""
        return self._scheduler.policy

    def cluster(self, reservations: tuple[Reservation, ...] = ()) -> ClusterState:
        """The fleet as placement sees it now, as if these loads had been decided as well."""
        overlay = self._scheduler.overlay()
        overlay = replace(overlay, reservations=(*overlay.reservations, *reservations))
        return self._placement_view.cluster(self._fleet.bare, overlay)

    def plan(
        self,
        request: PlacementRequest,
        reservations: tuple[Reservation, ...] = (),
        *,
        force: bool = False,
    ) -> tuple[Plan, ClusterState]:
        """What would be done for a wish now, and the world that this was decided on.

        Args:
            request: for what.
            reservations: see `cluster`.
            force: see `Ask.insists`.
        """
        cluster, now = self.cluster(reservations), self._clock.monotonic()
        failures = self._scheduler.failures
        return dry_run(request, cluster, self.policy, failures, now, force=force), cluster

    def lately(self, model: str) -> Mapping[str, str]:
        """What went wrong with a model on nodes lately, for people."""
        return self._scheduler.failures.told(model, self._clock.monotonic())
