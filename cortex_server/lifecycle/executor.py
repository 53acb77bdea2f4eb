"""Carries out decisions on the nodes: drains, unloads and loads. Makes no decisions."""

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
from cortex_server.placement.fit import SizeSource
from cortex_server.placement.pending_loads import LoadOrder

log = logging.getLogger("cortex.lifecycle")


class ExecutorEvents(Protocol):
    """Receives the outcomes of orders; they match the scheduler's events."""

    def evicted(self, instance: InstanceId) -> None:
        """Report that the evictions of an order are done."""
        ...

    def eviction_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        """Report that an instance did not drain or unload."""
        ...

    def removed(self, instance: InstanceId) -> None:
        """Report that an instance is gone and its memory has been measured as free."""
        ...

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        """Report that the node accepted the load, possibly as an instance that it was already loading."""
        ...

    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        """Report that the node lacks memory or is unreachable."""
        ...

    def failed(self, instance: InstanceId, reason: str) -> None:
        """Report a load that the node will never accept."""
        ...


class Executor:
    """Runs one task per order.

    Args:
        fleet: the instances to drain.
        nodes: client of each node's neuron, by node name.
        events: receives every outcome.
    """

    def __init__(
        self, fleet: Fleet, nodes: Mapping[str, NeuronClient], events: ExecutorEvents
    ) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._events = events
        self._tasks: set[asyncio.Task[None]] = set()
        self._evictions: dict[InstanceId, asyncio.Task[None]] = {}
        self._draining_for: dict[InstanceId, set[object]] = {}

    def evict(self, order: LoadOrder, drain_s: float) -> None:
        """Drain all evictions of a load, and only then unload them."""
        self._evictions[order.instance] = self._spawn(self._evict(order, drain_s))

    def cancel_eviction(self, order: LoadOrder) -> None:
        """Stop draining for a load; unloads that have started are finished."""
        if (task := self._evictions.pop(order.instance, None)) is not None:
            task.cancel()

    def cancel_load(self, order: LoadOrder) -> None:
        """Have the node unload what it has started to load, unless the instance is in use already."""
        self._spawn(self._cancel_load(order))

    def start_load(self, order: LoadOrder) -> None:
        """Send the load to the node."""
        self._spawn(self._load(order))

    async def close(self) -> None:
        """Cancel all tasks; instances that were draining take requests again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def remove(
        self, instances: Iterable[InstanceView], drain_s: float, reason: str, *, force: bool
    ) -> None:
        """Drain instances, then unload them.

        Args:
            instances: the instances.
            drain_s: how long their requests may continue.
            reason: the reason in one word.
            force: end requests of other gateways that are still running then.

        Raises:
            InstanceBusy: one had requests for longer than `drain_s`; if they were this gateway's, nothing was unloaded.
            CortexError: the node's error, when it could not unload.
        """
        views, owner = tuple(instances), object()
        await self._drain(tuple(v.id for v in views), drain_s, owner)
        outcomes = await asyncio.gather(
            *(self._unload(v, drain_s, reason, owner, force=force) for v in views),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def restart(self, restart: Restart, drain_s: float) -> RestartResponse:
        """Drain and restart an attached engine.

        Args:
            restart: the engine.
            drain_s: how long its requests may continue.

        Raises:
            InstanceBusy: they continued for longer, or other gateways have some; the engine keeps running.
            CortexError: the node's error, when it could not restart the engine.
        """
        instances, owner = tuple(i.id for i in restart.instances), object()
        await self._drain(instances, drain_s, owner)
        request = RestartRequest(min_cycles=restart.cycles, force=False)
        try:
            await self._fleet.report_use(restart.node)
            return await self.client(restart.node).restart(restart.harness, request)
        finally:
            self._reopen(instances, owner)

    async def forget_size(self, model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Have all nodes forget a model's size; return those that knew some, and those that could not be asked."""
        answers = await asyncio.gather(
            *(client.forget_size(model) for client in self._nodes.values()), return_exceptions=True
        )
        by_node = dict(zip(self._nodes, answers, strict=True))
        return (
            tuple(node for node, answer in by_node.items() if answer is True),
            tuple(node for node, answer in by_node.items() if isinstance(answer, BaseException)),
        )

    def client(self, node: str) -> NeuronClient:
        """Return the client of a node's neuron.

        Raises:
            NodeNotFound: there is no such node.
        """
        if (client := self._nodes.get(node)) is None:
            raise NodeNotFound.for_name(node, self._nodes)
        return client

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("executor_failed", exc_info=error)

    async def _evict(self, order: LoadOrder, drain_s: float) -> None:
        model, node = order.model_config.id, order.plan.node
        event(
            log,
            "eviction_started",
            logging.WARNING,
            node=node,
            candidates=order.plan.evictions,
            model=model,
        )
        ids = set(order.plan.evictions)
        remaining = [i for i in self._fleet.node_snapshot.instances() if i.id in ids]
        current = order.plan.evictions[0]
        try:
            await self._drain(order.plan.evictions, drain_s, order.instance)
            self._evictions.pop(order.instance, None)
            while remaining:
                current = remaining[0].id
                await self._unload(remaining[0], drain_s, "eviction", order.instance, force=False)
                remaining.pop(0)
        except InstanceBusy as busy:
            self._events.eviction_failed(order.instance, InstanceId(busy.details["instance"]))
        except CortexError as error:
            event(log, "eviction_failed", logging.WARNING, node=node, reason=error.message)
            self._events.eviction_failed(order.instance, current)
        except Exception:  # the load must not wait forever, whatever went wrong
            log.exception("eviction_failed")
            self._events.eviction_failed(order.instance, current)
        else:
            self._events.evicted(order.instance)
        finally:
            self._evictions.pop(order.instance, None)
            self._reopen((view.id for view in remaining), order.instance)

    def _reopen(self, instances: Iterable[InstanceId], owner: object) -> None:
        """Let instances take requests again, except those that are also draining for another reason."""
        for instance in instances:
            others = self._draining_for.get(instance, set()) - {owner}
            if others:
                self._draining_for[instance] = others
            else:
                self._draining_for.pop(instance, None)
                self._fleet.set_draining(instance, draining=False)

    async def _drain(
        self, instances: tuple[InstanceId, ...], drain_s: float, owner: object
    ) -> None:
        """Return once this gateway has no request on any of the instances; new ones are kept away meanwhile."""
        for instance in instances:
            self._draining_for.setdefault(instance, set()).add(owner)
            self._fleet.set_draining(instance, draining=True)
        current = instances[0] if instances else InstanceId("")
        try:
            async with asyncio.timeout(drain_s):
                for current in instances:
                    await self._fleet.wait_idle(current)
        except BaseException as error:
            self._reopen(instances, owner)
            if isinstance(error, TimeoutError):
                self._fleet.metrics.counters.drains["busy"] += 1
                raise InstanceBusy.after_drain(current, drain_s) from error
            raise
        self._fleet.metrics.counters.drains["idle"] += 1

    async def _unload(
        self, view: InstanceView, drain_s: float, reason: str, owner: object, *, force: bool
    ) -> None:
        request = UnloadRequest(
            model_id=view.model, instance_id=view.id, drain_seconds=drain_s, force=force
        )
        try:
            await self._fleet.report_use(view.node)
            await self.client(view.node).unload(request)
        except Exception as error:
            if not isinstance(error, CortexError) or error.status != 404:
                self._reopen((view.id,), owner)
                raise
        self._draining_for.pop(view.id, None)
        self._fleet.metrics.counters.unloads[view.node, reason] += 1
        event(
            log,
            "instance_unloaded",
            node=view.node,
            model=view.model,
            instance=view.id,
            reason=reason,
        )
        self._events.removed(view.id)

    async def _cancel_load(self, order: LoadOrder) -> None:
        node, instance, model = order.plan.node, order.instance, ModelId(order.model_config.id)
        request = UnloadRequest(
            model_id=model, instance_id=instance, drain_seconds=0.0, force=False
        )
        try:
            await self.client(node).unload(request)
        except CortexError as error:
            event(
                log, "load_cancel_failed", logging.WARNING, instance=instance, reason=error.message
            )
        else:
            event(log, "load_cancelled", node=node, model=model, instance=instance)

    async def _load(self, order: LoadOrder) -> None:
        plan, size = order.plan, order.plan.shape.size
        measured = size.source is SizeSource.MEASURED
        reserve_mb = size.device_mb if measured else None
        spec = order.model_config.spec(plan.devices, order.instance, reserve_mb=reserve_mb)
        event(
            log,
            "load_started",
            node=plan.node,
            devices=plan.devices,
            model=order.model_config.id,
            instance=order.instance,
            reason=plan.reason,
        )
        try:
            answer = await self.client(plan.node).load(spec, known=order.known_instances)
        except DoesNotFit as refusal:
            needed_mb = refusal.details.get("needed_mb")
            event(log, "load_refused", logging.WARNING, node=plan.node, reason=refusal.message)
            self._events.refused(order, needed_mb if isinstance(needed_mb, int) else None)
        except UpstreamFailed as error:
            event(log, "load_request_failed", logging.WARNING, node=plan.node, reason=error.message)
            self._events.refused(order, None)
        except CortexError as error:
            self._events.failed(order.instance, f"node {plan.node} refused: {error.message}")
        except Exception:  # waiting requests must be answered, whatever went wrong
            log.exception("load_failed")
            self._events.failed(order.instance, "internal error of the gateway; see its log")
        else:
            self._events.admitted(order.instance, answer.instance_id)
