"""What was decided, kept for whoever asks why an instance is where it is, or why a request went where it went."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

from cortex_common.schema.instances import InstanceId
from cortex_common.schema.plans import DecisionView
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.planner import Load

KEPT = 2000
"""Requests that are remembered, the latest; one that waited for nothing takes no place."""


class DecisionLog:
    """Loads by instance, and waits by request id.

    A request may wait more than once, as what it got may be gone before it comes to it.
    """

    def __init__(self) -> None:
        self._loads: dict[InstanceId, Load] = {}
        self._waits: OrderedDict[str, tuple[DecisionView, ...]] = OrderedDict()
        self._fresh: dict[str, None] = {}

    def begun(self, order: LoadOrder) -> None:
        """A load was begun."""
        self._loads[order.instance] = order.plan

    def forget_loads(self, but: Collection[InstanceId]) -> None:
        """Forget the loads of all other instances."""
        self._loads = {i: load for i, load in self._loads.items() if i in but}

    @property
    def why(self) -> Mapping[InstanceId, str]:
        """Why this gateway's instances are where they are."""
        return {i: load.why for i, load in self._loads.items()}

    def waited(
        self,
        request: str,
        *,
        at: float,
        model: str,
        seconds: float,
        instance: InstanceId | None,
        otherwise: str,
    ) -> None:
        """Remember how a wait ended.

        Args:
            request: the id of who waited.
            at: Unix seconds.
            model: that was waited for.
            seconds: for how long.
            instance: that it got; None when it waited in vain.
            otherwise: what there is to say where no load of this gateway explains it.
        """
        load = self._loads.get(instance) if instance is not None else None
        decision = DecisionView(
            at=at,
            model=model,
            waited_s=round(seconds, 3),
            instance=instance,
            why=load.why if load is not None else otherwise,
            evicted=load.evictions if load is not None else (),
        )
        self.keep(request, decision)

    def keep(self, request: str, decision: DecisionView) -> None:
        """Remember how a wait ended."""
        self._waits[request] = (*self._waits.pop(request, ()), decision)
        self._fresh[request] = None
        if len(self._waits) > KEPT:
            self._fresh.pop(self._waits.popitem(last=False)[0], None)

    def of(self, request: str) -> tuple[DecisionView, ...]:
        """The waits of a request, the first first; none when it had none, or is forgotten."""
        return self._waits.get(request, ())

    def recall(self, waits: Mapping[str, tuple[DecisionView, ...]]) -> None:
        """Begin with what was kept elsewhere, the oldest first."""
        self._waits.update(waits)

    def fresh(self) -> Mapping[str, tuple[DecisionView, ...]]:
        """What nobody has `kept` elsewhere yet."""
        return {request: self._waits[request] for request in self._fresh}

    def kept(self, waits: Mapping[str, tuple[DecisionView, ...]]) -> None:
        """These were; a wait that came meanwhile stays fresh."""
        for request, known in waits.items():
            if self._waits.get(request) == known:
                self._fresh.pop(request, None)
