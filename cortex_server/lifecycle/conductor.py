"""The one task that owns lifecycle state: events come in through an inbox, decisions go out to the nodes.

Nobody else plans, loads or evicts. The fast path of a request does not come here: only a request whose model has no
ready instance does, and waits in `Conductor.obtain`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelProfile
from cortex_common.config.gateway import GatewayConfig
from cortex_common.errors import CortexError, Unavailable
from cortex_common.fleet import FleetSnapshot, InstanceView
from cortex_common.logs import event
from cortex_common.models import InstanceId, ModelId
from cortex_common.neuron_client import NeuronClient
from cortex_server.core.policy import Policy, Prefer, Strategy
from cortex_server.core.rooms import Overlay, Pins, Rooms
from cortex_server.core.scheduler import Order, Scheduler, Underway
from cortex_server.core.waiting import Ask, Goal
from cortex_server.core.world import World
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.carrier import Carrier, Later
from cortex_server.lifecycle.knowledge import Knowledge

log = logging.getLogger("cortex.lifecycle")

UPKEEP_S = 1.0
"""How often what depends on time alone is looked at."""


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """How far the model that somebody waits for is.

    Attributes:
        state: waiting_for_room, making_room, starting or loading.
        node: where it is being loaded.
        eta_s: seconds until ready, from past loads; None when nothing is known.
        position: 1 when no other model's requests wait longer; 0 when nobody waits.
        started: the node is loading it.
        progress: share of the load that is done, 0 to 1, where the engine tells.
        stage: what the engine says that it is doing.
    """

    state: str
    node: str | None
    eta_s: float | None
    position: int
    started: bool
    progress: float | None = None
    stage: str | None = None


def policy_of(config: GatewayConfig) -> Policy:
    """The operator's choices as the cores take them."""
    return Policy(
        strategy=Strategy(config.eviction.strategy),
        prefer=Prefer(config.placement.prefer),
        min_residency_s=config.eviction.min_residency,
        patience_s=config.placement.patience,
        max_waiting=config.placement.max_waiting,
        labels={n.name: n.labels for n in config.neurons},
    )


def new_instance_id(model: str) -> InstanceId:
    """A readable name that no other gateway or run gives: the end of the model's name and 48 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return InstanceId(f"{slug or 'model'}-{secrets.token_hex(6)}")


class Conductor:
    """See the module.

    Args:
        fleet: the live state.
        nodes: client of each node's neuron, by node name.
        catalogue: the profiles; `use_catalogue` replaces them.
        config: of the gateway.
        clock: for deadlines and timestamps.
        knowledge: of sizes and load times.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        nodes: Mapping[str, NeuronClient],
        catalogue: Catalogue,
        config: GatewayConfig,
        clock: Clock,
        knowledge: Knowledge | None = None,
    ) -> None:
        self.knowledge = knowledge or Knowledge()
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._catalogue = catalogue
        self._carrier = Carrier(fleet, nodes, self)
        self._scheduler = Scheduler(self, policy_of(config), new_instance_id)
        self._rooms = Rooms()
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[InstanceId]] = {}
        self._inbox: deque[Later] = deque()
        self._bell = asyncio.Event()
        self._gone: frozenset[InstanceId] = frozenset()
        self._leaving: frozenset[InstanceId] = frozenset()
        self._pins: Pins = frozenset()
        self._considered: list[asyncio.Future[None]] = []
        self._ended = False

    # -- what the data plane calls -----------------------------------------------------------

    async def obtain(
        self, profile: ModelProfile, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """Wait until an instance of the model is ready, having it loaded where needed.

        Cancelling the wait is right at any time: a load that nobody else wants is given up if its node was not
        asked yet.

        Args:
            profile: of the model.
            request_id: for the log.
            timeout_s: how long to wait.

        Raises:
            DoesNotFit: it fits nowhere; at once, with the reason for each device.
            NoHealthyNode: no node that could serve it answers.
            LoadFailed: the engine could not load it; with its reason.
            ModelLoading: `timeout_s` went by; with state, node and ETA.
            Busy: too many wait for it already.
        """
        event(log, "cold_start", logging.DEBUG, model=profile.id, request=request_id)
        return await self.want(profile, Goal(profile.id), timeout_s=timeout_s)

    async def want(self, profile: ModelProfile, goal: Goal, *, timeout_s: float) -> InstanceId:
        """`obtain` for any goal, such as an instance on a certain node."""
        if self._ended:
            raise Unavailable("the gateway is stopping", retry_after=5.0)
        now = self._clock.monotonic()
        ask = Ask(next(self._ids), profile, goal, now, now + timeout_s)
        answer: asyncio.Future[InstanceId] = asyncio.get_running_loop().create_future()
        self._answers[ask.id] = answer
        self._post(lambda at: self._scheduler.ask(ask, at))
        try:
            return await answer
        finally:
            if self._answers.pop(ask.id, None) is not None:
                self._post(lambda _at: self._scheduler.cancel(ask.id))

    def waiting(self, model: ModelId) -> int:
        """How many requests wait for a model."""
        return self._scheduler.waiting.count(model)

    async def settled(self) -> None:
        """Return once everything that was asked before has been considered."""
        considered = asyncio.get_running_loop().create_future()
        self._post(lambda _now: self._considered.append(considered))
        await considered

    async def unload(
        self, model: str, instances: Iterable[InstanceView], drain_s: float, *, whole: bool
    ) -> None:
        """Drain and end instances of a model.

        Args:
            model: its id.
            instances: which of them.
            drain_s: how long their requests may go on.
            whole: the model is not wanted any more, so whoever waits for it is told.

        Raises:
            StillBusy: requests went on for longer; nothing was ended.
        """
        views = tuple(instances)
        ids = frozenset(v.id for v in views)
        if whole:
            self._post(lambda _now: self._scheduler.drop(model))
        self._leaving |= ids
        try:
            await self._carrier.remove(views, drain_s)
        finally:
            self._leaving -= ids
            self._bell.set()

    def progress(self, model: str) -> WaitProgress | None:
        """How far a model is that somebody waits for or that is being loaded; None when neither."""
        position = self._scheduler.waiting.position(model)
        load = next((u for u in self._scheduler.loads if u.goal.model == model), None)
        if load is None:
            joined = self._loading_elsewhere(model)
            if joined is not None:
                return replace(joined, position=position)
            return (
                WaitProgress("waiting_for_room", None, None, position, False) if position else None
            )
        return self._progress_of(load, position)

    # -- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide until cancelled; then everybody who still waits is told."""
        self._fleet.on_change(self._bell.set)
        self._fleet.count_waiting(self.waiting)
        upkeep_at = self._clock.monotonic()
        try:
            while True:
                await self._next_event(upkeep_at)
                now = self._clock.monotonic()
                while self._inbox:
                    self._inbox.popleft()(now)
                if now >= upkeep_at:
                    upkeep_at = now + UPKEEP_S
                    self._keep_up(now)
                self._step(now)
                self._say_considered()
        finally:
            self._ended = True
            self._fleet.remove_listener(self._bell.set)
            while self._inbox:
                self._inbox.popleft()(self._clock.monotonic())
            self._scheduler.close(Unavailable("the gateway is stopping", retry_after=5.0))
            self._say_considered()
            await self._carrier.close()

    def _say_considered(self) -> None:
        while self._considered:
            if not (considered := self._considered.pop()).done():
                considered.set_result(None)

    async def _next_event(self, upkeep_at: float) -> None:
        """Return when something happened, or something is due."""
        wake = self._scheduler.next_wake()
        until = upkeep_at if wake is None else min(wake, upkeep_at)
        seconds = max(0.0, until - self._clock.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            pass
        self._bell.clear()

    def _step(self, now: float) -> None:
        if not self._scheduler.waiting and not self._scheduler.loads:
            return
        snapshot = self._fleet.snapshot
        self._scheduler.step(lambda overlay: self._world(snapshot, overlay), now)

    def _keep_up(self, now: float) -> None:
        snapshot = self._fleet.snapshot
        profiles = {p.id: p for p in self._catalogue.models}
        self.knowledge.observe(snapshot, profiles, now)
        self._gone &= {i.id for i in snapshot.instances()}

    def _world(self, snapshot: FleetSnapshot, overlay: Overlay) -> World:
        overlay = replace(
            overlay, leaving=overlay.leaving | self._leaving, gone=self._gone, pins=self._pins
        )
        return World(
            rooms=self._rooms.of(snapshot, overlay),
            now=snapshot.at,
            sizes=self.knowledge.sizes,
            standings=self.knowledge.standings(self._catalogue, self._clock.monotonic()),
            stored=self.knowledge.stored,
        )

    def _post(self, later: Later) -> None:
        self._inbox.append(later)
        self._bell.set()

    # -- effects of the scheduler ------------------------------------------------------------

    def grant(self, waiter: int, instance: InstanceId) -> None:
        """See `Effects.grant`."""
        answer = self._answers.pop(waiter, None)
        if answer is not None and not answer.done():
            answer.set_result(instance)

    def refuse(self, waiter: int, error: CortexError) -> None:
        """See `Effects.refuse`."""
        answer = self._answers.pop(waiter, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def make_room(self, order: Order) -> None:
        """See `Effects.make_room`."""
        self._carrier.make_room(order, self._config.eviction.drain_timeout)

    def start(self, order: Order) -> None:
        """See `Effects.start`."""
        self._carrier.start(order)

    def abandon(self, order: Order) -> None:
        """See `Effects.abandon`."""
        self._carrier.abandon(order)

    # -- reports of the carrier --------------------------------------------------------------

    def room_made(self, instance: InstanceId) -> None:
        """See `Reports.room_made`."""
        self._post(lambda now: self._scheduler.room_made(instance, now))

    def room_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        """See `Reports.room_failed`."""
        self._post(lambda now: self._scheduler.room_failed(instance, stuck, now))

    def left(self, instance: InstanceId) -> None:
        """See `Reports.left`."""
        self._gone |= {instance}
        self._bell.set()

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        """See `Reports.admitted`."""
        self._post(lambda now: self._scheduler.admitted(instance, actual, now))

    def refused(self, order: Order, needed_mb: int | None) -> None:
        """See `Reports.refused`."""
        if needed_mb is not None:
            shape = order.plan.shape
            self.knowledge.refused(order.profile, shape.kind, shape.devices, needed_mb)
        self._post(lambda now: self._scheduler.refused(order.instance, now))

    def failed(self, instance: InstanceId, reason: str) -> None:
        """See `Reports.failed`."""
        self._post(lambda now: self._scheduler.failed(instance, reason, now))

    # -- progress ----------------------------------------------------------------------------

    def _progress_of(self, load: Underway, position: int) -> WaitProgress:
        place = load.order.plan
        node = self._fleet.snapshot.node(place.node)
        view = (
            next((i for i in node.instances if i.id == load.order.instance), None) if node else None
        )
        usual = self.knowledge.load_seconds(load.goal.model)
        eta = view.eta_s if view is not None else None
        if eta is None and usual is not None:
            eta = max(0.0, usual - (self._clock.monotonic() - load.since))
        return WaitProgress(
            state=load.stage.value,
            node=place.node,
            eta_s=eta,
            position=position,
            started=view is not None,
            progress=view.progress if view is not None else None,
            stage=view.stage if view is not None else None,
        )

    def _loading_elsewhere(self, model: str) -> WaitProgress | None:
        """A load that another gateway began."""
        for i in self._fleet.snapshot.instances():
            if i.model == model and i.state == "loading":
                return WaitProgress("loading", i.node, i.eta_s, 0, True, i.progress, i.stage)
        return None
