"""Carries decisions out on the nodes: drains, unloads and loads. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Protocol

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import CortexError, DoesNotFit, InstanceBusy, NodeNotFound, UpstreamFailed
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import (
    InstanceId,
    ModelId,
    RestartRequest,
    RestartResponse,
    UnloadRequest,
)
from cortex_server.fleet.state import Fleet
from cortex_server.placement.engine_restarts import Restart
from cortex_server.placement.pending_loads import LoadOrder

log = logging.getLogger("cortex.lifecycle")


class ExecutorEvents(Protocol):
    """Where the outcome of an order goes; see the scheduler's events."""

    def room_made(self, instance: InstanceId) -> None:
        """The evictions are done."""
        ...

    def room_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        """This victim would not go."""
        ...

    def left(self, instance: InstanceId) -> None:
        """An instance is gone and its memory measured free."""
        ...

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        """The node has taken the load on, perhaps as one that it had begun already."""
        ...

    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        """The node can't take it, or can't be reached."""
        ...

    def failed(self, instance: InstanceId, reason: str) -> None:
        """The node will not load it, however often it is asked."""
        ...


class Executor:
    """Runs one task for each order.

    Args:
        fleet: whose instances drain.
        nodes: client of each node's neuron.
        reports: told of every outcome.
    """

    def __init__(
        self, fleet: Fleet, nodes: Mapping[str, NeuronClient], reports: ExecutorEvents
    ) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._reports = reports
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: dict[InstanceId, asyncio.Task[None]] = {}
        self._closed_by: dict[InstanceId, set[object]] = {}

    def make_room(self, order: LoadOrder, drain_s: float) -> None:
        """Drain the victims of a load, all of them, and only then unload them."""
        self._draining[order.instance] = self._spawn(self._make_room(order, drain_s))

    def abandon(self, order: LoadOrder) -> None:
        """Stop draining for a load; once the unloads have begun they are brought to their end."""
        if (task := self._draining.pop(order.instance, None)) is not None:
            task.cancel()

    def cancel_load(self, order: LoadOrder) -> None:
        """Have the node end what it has begun with, unless somebody uses it already."""
        self._spawn(self._take_back(order))

    def start(self, order: LoadOrder) -> None:
        """Ask the node to load."""
        self._spawn(self._start(order))

    async def close(self) -> None:
        """End all tasks; instances that were draining take requests again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def remove(
        self, instances: Iterable[InstanceView], drain_s: float, why: str, *, cut: bool
    ) -> None:
        """Drain instances, then unload them.

        Args:
            instances: which.
            drain_s: how long their requests may go on.
            why: the reason in one word.
            cut: end what others than this gateway still have on them then.

        Raises:
            StillBusy: one had requests for longer than `drain_s`; if they were this gateway's, none was unloaded.
            CortexError: the node's, when it could not unload.
        """
        views, by = tuple(instances), object()
        await self._drain(tuple(v.id for v in views), drain_s, by)
        done = await asyncio.gather(
            *(self._unload(v, drain_s, why, by, cut=cut) for v in views), return_exceptions=True
        )
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome

    async def restart(self, restart: Restart, drain_s: float) -> RestartResponse:
        """Drain what is in an engine of somebody else, and have it restarted.

        Args:
            restart: which engine.
            drain_s: how long requests in it may go on.

        Raises:
            StillBusy: they went on for longer, or others than this gateway have some; the engine runs on.
            CortexError: the node's, when it could not restart it.
        """
        inside, by = tuple(i.id for i in restart.instances), object()
        await self._drain(inside, drain_s, by)
        request = RestartRequest(min_cycles=restart.cycles, cut=False)
        try:
            return await self.client(restart.node).restart(restart.harness, request)
        finally:
            self._open(inside, by)

    def client(self, node: str) -> NeuronClient:
        """The client of a node's neuron.

        Raises:
            NodeNotFound: there is no such node.
        """
        if (client := self._nodes.get(node)) is None:
            raise NodeNotFound.for_name(node, self._nodes)
        return client

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("carrier_failed", exc_info=error)

    async def _make_room(self, order: LoadOrder, drain_s: float) -> None:
        model, node = order.model_config.id, order.plan.node
        event(
            log,
            "evicting",
            logging.WARNING,
            node=node,
            candidates=order.plan.evictions,
            model=model,
        )
        going = set(order.plan.evictions)
        left = [i for i in self._fleet.bare.instances() if i.id in going]
        stuck = order.plan.evictions[0]
        try:
            await self._drain(order.plan.evictions, drain_s, order.instance)
            self._draining.pop(order.instance, None)
            while left:
                stuck = left[0].id
                await self._unload(left[0], drain_s, "eviction", order.instance, cut=False)
                left.pop(0)
        except InstanceBusy as busy:
            self._reports.room_failed(order.instance, InstanceId(busy.details["instance"]))
        except CortexError as failed:
            event(log, "evict_failed", logging.WARNING, node=node, reason=failed.message)
            self._reports.room_failed(order.instance, stuck)
        except Exception:  # whatever it is, the load must not wait for ever
            log.exception("evict_failed")
            self._reports.room_failed(order.instance, stuck)
        else:
            self._reports.room_made(order.instance)
        finally:
            self._draining.pop(order.instance, None)
            self._open((view.id for view in left), order.instance)

    def _open(self, instances: Iterable[InstanceId], by: object) -> None:
        """Have instances take requests again, but for those that somebody else drains as well."""
        for instance in instances:
            others = self._closed_by.get(instance, set()) - {by}
            if others:
                self._closed_by[instance] = others
            else:
                self._closed_by.pop(instance, None)
                self._fleet.set_draining(instance, draining=False)

    async def _drain(self, instances: tuple[InstanceId, ...], drain_s: float, by: object) -> None:
        """Return once no request of this gateway is on any of them; new ones are kept away meanwhile."""
        for instance in instances:
            self._closed_by.setdefault(instance, set()).add(by)
            self._fleet.set_draining(instance, draining=True)
        waited_for = instances[0] if instances else InstanceId("")
        try:
            async with asyncio.timeout(drain_s):
                for waited_for in instances:
                    await self._fleet.when_idle(waited_for)
        except BaseException as stopped:
            self._open(instances, by)
            if isinstance(stopped, TimeoutError):
                self._fleet.metrics.counters.drains["busy"] += 1
                raise InstanceBusy.after_drain(waited_for, drain_s) from stopped
            raise
        self._fleet.metrics.counters.drains["idle"] += 1

    async def _unload(
        self, view: InstanceView, drain_s: float, why: str, by: object, *, cut: bool
    ) -> None:
        request = UnloadRequest(
            model_id=view.model, instance_id=view.id, drain_seconds=drain_s, cut=cut
        )
        try:
            await self.client(view.node).unload(request)
        except Exception as failed:
            if not isinstance(failed, CortexError) or failed.status != 404:
                self._open((view.id,), by)
                raise
        self._closed_by.pop(view.id, None)
        self._fleet.metrics.counters.unloads[view.node, why] += 1
        event(log, "unloaded", node=view.node, model=view.model, instance=view.id, why=why)
        self._reports.left(view.id)

    async def _take_back(self, order: LoadOrder) -> None:
        node, instance, model = order.plan.node, order.instance, ModelId(order.model_config.id)
        request = UnloadRequest(model_id=model, instance_id=instance, drain_seconds=0.0, cut=False)
        try:
            await self.client(node).unload(request)
        except CortexError as failed:
            event(log, "not_taken_back", logging.WARNING, instance=instance, reason=failed.message)
        else:
            event(log, "taken_back", node=node, model=model, instance=instance)

    async def _start(self, order: LoadOrder) -> None:
        place, size = order.plan, order.plan.shape.size
        spec = order.model_config.spec(
            place.devices, order.instance, device_mb=size.device_mb or None
        )
        event(
            log,
            "loading",
            node=place.node,
            devices=place.devices,
            model=order.model_config.id,
            instance=order.instance,
            why=place.why,
        )
        try:
            answer = await self.client(place.node).load(spec, known=order.known)
        except DoesNotFit as no:
            needed = no.details.get("needed_mb")
            event(log, "load_refused", logging.WARNING, node=place.node, reason=no.message)
            self._reports.refused(order, needed if isinstance(needed, int) else None)
        except UpstreamFailed as lost:
            event(log, "load_not_asked", logging.WARNING, node=place.node, reason=lost.message)
            self._reports.refused(order, None)
        except CortexError as failed:
            self._reports.failed(order.instance, f"node {place.node} refused: {failed.message}")
        except Exception:  # whatever it is, those who wait must hear of it
            log.exception("load_failed")
            self._reports.failed(order.instance, "the gateway failed; its log says how")
        else:
            self._reports.admitted(order.instance, answer.instance_id)
