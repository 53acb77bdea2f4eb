"""A log of decisions: why instances are where they are, and what requests waited for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

from cortex_common.schema.instances import InstanceId
from cortex_common.schema.plans import DecisionView
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.plans import Load

MAX_REQUESTS = 2000
"""Requests that are remembered, newest first to stay; a request that did not wait takes no entry."""


class DecisionLog:
    """Loads by instance, and waits by request id.

    A request can wait more than once, because the instance it was granted can be gone by the time it is used.
    """

    def __init__(self) -> None:
        self._loads: dict[InstanceId, Load] = {}
        self._waits: OrderedDict[str, tuple[DecisionView, ...]] = OrderedDict()
        self._unsaved: dict[str, None] = {}

    def record_load(self, order: LoadOrder) -> None:
        """Record that a load has started."""
        self._loads[order.instance] = order.plan

    def retain_loads(self, instances: Collection[InstanceId]) -> None:
        """Forget the loads of all instances but these."""
        self._loads = {i: load for i, load in self._loads.items() if i in instances}

    @property
    def load_reasons(self) -> Mapping[InstanceId, str]:
        """Why each instance of this gateway is where it is."""
        return {i: load.reason for i, load in self._loads.items()}

    def record_wait(
        self,
        request: str,
        *,
        at: float,
        model: str,
        seconds: float,
        instance: InstanceId | None,
        otherwise: str,
    ) -> None:
        """Record how a wait ended.

        Args:
            request: id of the request.
            at: Unix seconds.
            model: the model it waited for.
            seconds: how long it waited.
            instance: the instance it got; None when it got none.
            otherwise: the reason to record where no load of this gateway explains the outcome.
        """
        load = self._loads.get(instance) if instance is not None else None
        decision = DecisionView(
            at=at,
            model=model,
            waited_s=round(seconds, 3),
            instance=instance,
            reason=load.reason if load is not None else otherwise,
            evicted=load.evictions if load is not None else (),
        )
        self.add(request, decision)

    def add(self, request: str, decision: DecisionView) -> None:
        """Add a decision about a request."""
        self._waits[request] = (*self._waits.pop(request, ()), decision)
        self._unsaved[request] = None
        if len(self._waits) > MAX_REQUESTS:
            self._unsaved.pop(self._waits.popitem(last=False)[0], None)

    def for_request(self, request: str) -> tuple[DecisionView, ...]:
        """Return the decisions about a request, oldest first; empty when it never waited or is forgotten."""
        return self._waits.get(request, ())

    def restore(self, waits: Mapping[str, tuple[DecisionView, ...]]) -> None:
        """Start with saved decisions, oldest first."""
        self._waits.update(waits)

    def unsaved(self) -> Mapping[str, tuple[DecisionView, ...]]:
        """Return what has not been saved yet."""
        return {request: self._waits[request] for request in self._unsaved}

    def mark_saved(self, waits: Mapping[str, tuple[DecisionView, ...]]) -> None:
        """Mark decisions as saved; a request with newer ones stays unsaved."""
        for request, decisions in waits.items():
            if self._waits.get(request) == decisions:
                self._unsaved.pop(request, None)
