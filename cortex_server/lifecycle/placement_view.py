"""The fleet as placement sees it: a snapshot with what is decided, and not yet visible there, laid over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelProfile
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.measurements import Knowledge, StandingsNow
from cortex_server.lifecycle.pins import PinBoard
from cortex_server.placement.capacity import Overlay, Promise, Rooms
from cortex_server.placement.planner import Plan, foresee
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import Wish, World


class Outlook:
    """See the module.

    Args:
        knowledge: of models, from what they did.
        pins: set by operators.
        clock: for how models stand now.
    """

    def __init__(self, knowledge: Knowledge, pins: PinBoard, clock: Clock) -> None:
        self._knowledge = knowledge
        self._pins = pins
        self._clock = clock
        self._profiles: Mapping[str, ModelProfile] = {}
        self._rooms = Rooms()
        self._gone: frozenset[InstanceId] = frozenset()
        self._leaving: frozenset[InstanceId] = frozenset()
        self._returning: frozenset[Promise] = frozenset()
        self._standings = StandingsNow(knowledge, {}, clock.monotonic())

    def use_profiles(self, profiles: Mapping[str, ModelProfile]) -> None:
        """Replace the profiles, by model id."""
        self._profiles = profiles
        self._standings = StandingsNow(self._knowledge, profiles, self._clock.monotonic())

    def refresh(self, visible: frozenset[InstanceId]) -> None:
        """Forget the instances that no snapshot shows any more, and see anew how models stand.

        All of them are forgotten about at the same pace, so between two calls a second apart none overtakes another.
        """
        self._gone &= visible
        self._standings = StandingsNow(self._knowledge, self._profiles, self._clock.monotonic())

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
        promises = frozenset(
            Promise(InstanceId(f"{i.id} again"), i.model, i.node, (), 0) for i in instances
        )
        self._returning |= promises
        try:
            yield
        finally:
            self._returning -= promises

    def world(self, snapshot: FleetSnapshot, overlay: Overlay) -> World:
        """What plans are made from.

        Args:
            snapshot: the fleet.
            overlay: what the scheduler has decided.
        """
        overlay = replace(
            overlay,
            promises=(*overlay.promises, *self._returning),
            leaving=overlay.leaving | self._leaving,
            gone=self._gone,
            pins=self._pins.held,
        )
        return World(
            rooms=self._rooms.of(snapshot, overlay),
            now=snapshot.at,
            sizes=self._knowledge.sizes,
            standings=self._standings,
            stored=self._knowledge.stored,
        )


class Advice:
    """See the module.

    Args:
        scheduler: what is decided already, and what went wrong lately.
        outlook: how placement sees the fleet.
        fleet: the live state.
        clock: for how long ago things were.
    """

    def __init__(self, scheduler: Scheduler, outlook: Outlook, fleet: Fleet, clock: Clock) -> None:
        self._scheduler = scheduler
        self._outlook = outlook
        self._fleet = fleet
        self._clock = clock

    @property
    def policy(self) -> Policy:
        """The operator's choices."""
        return self._scheduler.policy

    def world(self, promised: tuple[Promise, ...] = ()) -> World:
        """The fleet as placement sees it now, as if these loads had been decided as well."""
        overlay = self._scheduler.overlay()
        overlay = replace(overlay, promises=(*overlay.promises, *promised))
        return self._outlook.world(self._fleet.bare, overlay)

    def plan(
        self, wish: Wish, promised: tuple[Promise, ...] = (), *, insists: bool = False
    ) -> tuple[Plan, World]:
        """What would be done for a wish now, and the world that this was decided on.

        Args:
            wish: for what.
            promised: see `world`.
            insists: see `Ask.insists`.
        """
        world, now = self.world(promised), self._clock.monotonic()
        troubles = self._scheduler.troubles
        return foresee(wish, world, self.policy, troubles, now, insists=insists), world

    def lately(self, model: str) -> Mapping[str, str]:
        """What went wrong with a model on nodes lately, for people."""
        return self._scheduler.troubles.told(model, self._clock.monotonic())
