"""What placement would do, for those who only ask: operators' plans, drains, moves, restarts.

Such a read may look at any moment; what it tells may have changed by the time that something is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cortex_common.clock import Clock
from cortex_server.core.decide import foresee
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.placement_view import Outlook
from cortex_server.placement.capacity import Promise
from cortex_server.placement.planner import Plan
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import Wish, World


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
