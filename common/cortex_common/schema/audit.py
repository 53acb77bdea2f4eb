"""The audit log: decisions about the fleet, who made them, and why."""

from __future__ import annotations

from pydantic import Field

from cortex_common.clock import PreciseTimestamp
from cortex_common.schema.base import WireModel
from cortex_common.schema.bounds import Count


class AuditEntry(WireModel):
    """One decision or event.

    Attributes:
        id: increases with every entry, across restarts of the gateway.
        at: Unix seconds.
        actor: name of the key that requested it, "node NAME" for what a node did, "cortex" for what the gateway
            decided on its own.
        event: stable name, such as "eviction_started" or "instance_ready"; the log uses the same name.
        level: info, warn or error.
        fields: model, node, instance, reason and other values.
    """

    id: Count
    at: PreciseTimestamp
    actor: str
    event: str
    level: str = "info"
    fields: dict[str, str] = Field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The model, or else the instance, key, request or node that the entry is about."""
        values = (self.fields.get(k) for k in ("model", "instance", "key", "request", "node"))
        return next((value for value in values if value), "")

    def matches(self, words: str) -> bool:
        """Return whether every word occurs in the event name, the actor or a fact, ignoring case."""
        text = " ".join((self.event, self.actor, *self.fields.values())).lower()
        return all(word in text for word in words.lower().split())
