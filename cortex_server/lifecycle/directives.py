"""The pins, cordons and times to live that operators set: kept by the nodes, the same for every gateway.

This gateway has a copy, so that a change for a node that is away reaches it when it is back. See
`cortex_common.schema.directives`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import Clock
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.directives import Directive, DirectiveKind, DirectiveSet
from cortex_common.schema.instances import ModelId
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.pins import PinStore
from cortex_server.lifecycle.ports import PlacementStorage
from cortex_server.placement.records import Pin

log = logging.getLogger("cortex.lifecycle")

RETRY_INTERVAL_S = 5.0
"""Seconds after which directives are sent again to a node that did not take them."""

SEND_TIMEOUT_S = 5.0
"""Seconds that an operator waits for the nodes to take a directive; later it is sent in the background."""


class OperatorDirectives:
    """The directives of the fleet and of each node, and what follows from them.

    Args:
        fleet: reports the nodes' directives, and shows cordons.
        nodes: client of each node's neuron, by node name.
        clock: for when directives are set and expire.
        store: keeps the copy across restarts of the gateway.
        on_change: called when a pin or a time to live has changed.

    Attributes:
        pins: the pins in force.
        ttls: times to live in seconds, by model.
    """

    def __init__(
        self,
        fleet: Fleet,
        nodes: Mapping[str, NeuronClient],
        clock: Clock,
        store: PlacementStorage | None,
        on_change: Callable[[], None],
    ) -> None:
        self.pins = PinStore()
        self.ttls: Mapping[str, float] = {}
        self._fleet = fleet
        self._nodes = nodes
        self._clock = clock
        self._store = store
        self._on_change = on_change
        self._of_fleet = DirectiveSet()
        self._of_node: dict[str, DirectiveSet] = {}
        self._reported: dict[str, tuple[Directive, ...]] = {}
        self._unsent: set[str] = set()
        self._wakeup = asyncio.Event()
        self._sent = asyncio.Event()
        for node, directive in store.directives() if store else ():
            self._target(node or None).merge((directive,))

    # -- changes by operators --------------------------------------------------------------

    def pin(self, pin: Pin) -> None:
        """Protect a model from eviction."""
        fleet = pin.node is None
        self._set(
            pin.node,
            Directive(kind=DirectiveKind.PIN, model=pin.model, fleet=fleet, until=pin.until),
        )

    def unpin(self, model: ModelId, node: str | None) -> bool:
        """Remove a model's pins, on one node or all; return whether there was one."""
        found = [p for p in self.pins.all() if p.model == model and node in {None, p.node}]
        for pin in found:
            self._set(
                pin.node,
                Directive(
                    kind=DirectiveKind.PIN, model=model, fleet=pin.node is None, active=False
                ),
            )
        return bool(found)

    def set_ttl(self, model: ModelId, seconds: float) -> None:
        """Unload a model once it has been idle for some seconds; 0 for never."""
        self._set(None, Directive(kind=DirectiveKind.TTL, model=model, fleet=True, seconds=seconds))

    def set_cordoned(self, node: str, *, cordoned: bool) -> None:
        """Place no new instances on a node, or place them again."""
        self._set(node, Directive(kind=DirectiveKind.CORDON, active=cordoned))

    async def saved(self) -> None:
        """Wait until the nodes that are up have taken all changes, for a while, and until the copy is saved.

        Raises:
            Unavailable: see `PlacementStorage.saved`.
        """
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                while self._unsent:
                    self._sent.clear()
                    await self._sent.wait()
        except TimeoutError:
            event(log, "directives_unsent", logging.WARNING, nodes=tuple(sorted(self._unsent)))
        if self._store is not None:
            await self._store.saved()

    # -- what nodes report -----------------------------------------------------------------

    def observe(self) -> None:
        """Take the directives that nodes report, and note which nodes lack one."""
        changed = False
        for node, reported in self._fleet.reported_directives():
            if self._reported.get(node) is not reported:
                self._reported[node] = reported
                changed |= self._merge(node, reported)
                self._check(node)
        if changed:
            for node in self._reported:
                self._check(node)
            self._changed()

    def refresh(self) -> None:
        """Apply what is in force now: pins expire, and nodes are added to the configuration."""
        self._of_fleet.prune(self._clock.unix())
        for directives in self._of_node.values():
            directives.prune(self._clock.unix())
        self._apply()

    # -- sending ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Send nodes what they lack, until cancelled."""
        while True:
            timeout_s = RETRY_INTERVAL_S if self._unsent else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), timeout_s)
            self._wakeup.clear()
            await asyncio.gather(*(self._send(node) for node in tuple(self._unsent)))
            self._sent.set()

    async def _send(self, node: str) -> None:
        client, lacking = self._nodes.get(node), self._lacking(node)
        try:
            if client is not None and lacking:
                self._take(node, await client.apply_directives(lacking))
        except CortexError as error:
            event(log, "directives_rejected", logging.DEBUG, node=node, reason=error.message)
            if self._fleet.is_up(node):
                return
        self._unsent.discard(node)

    def _take(self, node: str, kept: tuple[Directive, ...]) -> None:
        """Take a node's answer, which its next report will repeat."""
        self._reported[node] = kept
        if self._merge(node, kept):
            self._changed()

    # -- internals -------------------------------------------------------------------------

    def _target(self, node: str | None) -> DirectiveSet:
        return self._of_fleet if node is None else self._of_node.setdefault(node, DirectiveSet())

    def _set(self, node: str | None, directive: Directive) -> None:
        target = self._target(node)
        target.merge((target.with_time(directive, self._clock.unix()),))
        for up, _ in self._fleet.reported_directives():
            if node in {None, up}:
                self._check(up)
        self._changed()

    def _merge(self, node: str, reported: tuple[Directive, ...]) -> bool:
        of_fleet = self._of_fleet.merge(d for d in reported if d.fleet)
        return self._target(node).merge(d for d in reported if not d.fleet) or of_fleet

    def _lacking(self, node: str) -> tuple[Directive, ...]:
        known = DirectiveSet(self._reported.get(node, ()))
        return (*self._of_fleet.newer_than(known), *self._target(node).newer_than(known))

    def _check(self, node: str) -> None:
        if self._lacking(node):
            self._unsent.add(node)
            self._wakeup.set()

    def _changed(self) -> None:
        if self._store is not None:
            of_node = ((n, d) for n, found in self._of_node.items() for d in found.all())
            self._store.replace_directives([*(("", d) for d in self._of_fleet.all()), *of_node])
        self._apply()

    def _apply(self) -> None:
        """Derive pins, times to live and cordons from the directives in force."""
        now = self._clock.unix()
        in_force: list[tuple[str | None, Directive]] = [
            (None, d) for d in self._of_fleet.all() if d.in_force(now)
        ]
        in_force += [
            (node, d)
            for node, found in self._of_node.items()
            for d in found.all()
            if d.in_force(now)
        ]
        pins = tuple(
            Pin(ModelId(d.model), node, d.until)
            for node, d in in_force
            if d.kind is DirectiveKind.PIN
        )
        ttls = {
            d.model: d.seconds
            for _, d in in_force
            if d.kind is DirectiveKind.TTL and d.seconds is not None
        }
        cordoned = {node for node, d in in_force if d.kind is DirectiveKind.CORDON}
        for node in self._fleet.entries:
            self._fleet.set_cordoned(node, node in cordoned)
        if self.pins.replace(pins) or ttls != self.ttls:
            self.ttls = ttls
            self._on_change()
