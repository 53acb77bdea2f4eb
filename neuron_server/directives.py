"""The directives that this node keeps: pins, cordons and times to live, saved in its state directory."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_common.clock import Clock
from cortex_common.errors import BadRequest
from cortex_common.schema.directives import MAX_DIRECTIVES, Directive, DirectiveSet
from neuron_server.event_log import EventLog
from neuron_server.state_store import StateDir


class NodeDirectives:
    """Keeps directives for all gateways; it enforces none of them, because gateways place and evict.

    Args:
        state: holds them across restarts.
        events: receives an event for each change.
        clock: for their age.
    """

    def __init__(self, state: StateDir, events: EventLog, clock: Clock) -> None:
        self._state = state
        self._events = events
        self._clock = clock
        self._directives = DirectiveSet(state.directives())
        self._directives.prune(clock.unix())

    def all(self) -> tuple[Directive, ...]:
        """Return all directives, those that are no longer in force included."""
        return self._directives.all()

    def apply(self, directives: Iterable[Directive]) -> tuple[Directive, ...]:
        """Keep the directives that are newer than known ones; return all.

        Raises:
            BadRequest: there would be too many.
        """
        merged = DirectiveSet(self._directives.all())
        merged.merge(directives)
        changed = merged.newer_than(self._directives)
        if not changed:
            return self.all()
        merged.prune(self._clock.unix())
        if len(merged.all()) > MAX_DIRECTIVES:
            raise BadRequest(f"a node keeps at most {MAX_DIRECTIVES} pins, cordons and TTLs")
        self._directives = merged
        self._state.save_directives(merged.all())
        for directive in changed:
            self._events.record(
                "directive_changed",
                kind=directive.kind.value,
                model=directive.model or None,
                active=directive.active,
            )
        return self.all()
