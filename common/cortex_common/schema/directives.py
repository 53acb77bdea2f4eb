"""Directives: the pins, cordons and times to live that operators set, which the nodes keep.

Each node keeps its own directives, and a copy of those for the whole fleet, and reports both. Of two directives with
the same key the one set later is in force, so that all gateways come to the same result, whichever of them changed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from cortex_common.schema.base import WireModel
from cortex_common.schema.bounds import Flag, Name, Seconds, UnixSeconds

MAX_DIRECTIVES = 4096
"""Directives that a node accepts in one request, and keeps."""

RETENTION_S = 30 * 86400.0
"""Seconds for which a directive that is no longer in force is kept, so that a node that was away learns of its end."""


class DirectiveKind(StrEnum):
    """What a directive says."""

    CORDON = "cordon"
    PIN = "pin"
    TTL = "ttl"


class DirectiveKey(NamedTuple):
    """What at most one directive is in force for."""

    kind: DirectiveKind
    model: str
    fleet: bool


class Directive(WireModel):
    """One pin, cordon or time to live.

    Attributes:
        kind: what it says.
        model: the model that it is about; empty for a cordon.
        fleet: it holds on every node; otherwise only on the node that keeps it.
        active: it is in force; a directive that was removed is kept as inactive.
        until: Unix seconds at which a pin expires; None for never.
        seconds: time to live of an idle model.
        set_at: Unix seconds at which it was set or removed.
    """

    kind: DirectiveKind
    model: Name = ""
    fleet: Flag = False
    active: Flag = True
    until: UnixSeconds | None = None
    seconds: Seconds | None = None
    set_at: UnixSeconds = 0.0

    @property
    def key(self) -> DirectiveKey:
        """What at most one directive is in force for."""
        return DirectiveKey(self.kind, self.model, self.fleet)

    def in_force(self, now: float) -> bool:
        """Return whether it holds at a time in Unix seconds."""
        return self.active and (self.until is None or self.until > now)


class DirectiveSet:
    """Directives by key, the latest of each.

    Args:
        directives: the first ones.
    """

    def __init__(self, directives: Iterable[Directive] = ()) -> None:
        self._by_key: dict[DirectiveKey, Directive] = {}
        self.merge(directives)

    def all(self) -> tuple[Directive, ...]:
        """Return all directives, those that are no longer in force included."""
        return tuple(self._by_key.values())

    def get(self, key: DirectiveKey) -> Directive | None:
        """Return the directive with a key."""
        return self._by_key.get(key)

    def with_time(self, directive: Directive, now: float) -> Directive:
        """Return a directive that is set now, and so replaces the known one even where that one's clock was ahead."""
        known = self.get(directive.key)
        at = now if known is None else max(now, known.set_at + 0.001)
        return directive.model_copy(update={"set_at": at})

    def merge(self, directives: Iterable[Directive]) -> bool:
        """Take each directive that was set later than the known one with its key; return whether there was one."""
        changed = False
        for directive in directives:
            if is_newer(directive, self._by_key.get(directive.key)):
                self._by_key[directive.key] = directive
                changed = True
        return changed

    def newer_than(self, other: DirectiveSet) -> tuple[Directive, ...]:
        """Return the directives that `other` lacks, or of which it has an earlier one."""
        return tuple(d for d in self.all() if is_newer(d, other.get(d.key)))

    def prune(self, now: float) -> bool:
        """Forget what ended more than `RETENTION_S` ago; return whether there was anything. `now` is Unix seconds."""
        ended = [
            key
            for key, d in self._by_key.items()
            if not d.in_force(now) and max(d.set_at, d.until or 0.0) < now - RETENTION_S
        ]
        for key in ended:
            del self._by_key[key]
        return bool(ended)


def is_newer(directive: Directive, known: Directive | None) -> bool:
    """Return whether a directive replaces the known one with its key.

    Of two that were set at the same time the one with the greater text does, so that the order in which a node hears of
    them does not matter.
    """
    if known is None:
        return True
    if directive.set_at != known.set_at:
        return directive.set_at > known.set_at
    return directive.model_dump_json() > known.model_dump_json()
