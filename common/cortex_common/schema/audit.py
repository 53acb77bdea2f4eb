"""The audit trail as operators see it: what was decided about the fleet, by whom, and why."""

from __future__ import annotations

from pydantic import Field

from cortex_common.clock import ExactMoment
from cortex_common.schema.base import Wire


class AuditEntry(Wire):
    """One decision, or one thing that happened.

    Attributes:
        id: grows from entry to entry, also over restarts of the gateway.
        at: Unix seconds.
        actor: name of the key that asked for it, "node NAME" for what a node did, "cortex" for what the gateway
            decided by itself.
        event: stable name, such as "evicting" or "instance_ready"; the log has it under the same name.
        level: info, warn or error.
        facts: what it is about: model, node, instance, reason, ...
    """

    id: int
    at: ExactMoment
    actor: str
    event: str
    level: str = "info"
    facts: dict[str, str] = Field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The model, else whatever it is about."""
        named = (self.facts.get(k) for k in ("model", "instance", "key", "request", "node"))
        return next((found for found in named if found), "")

    def holds(self, words: str) -> bool:
        """Whether each word is in its name, its actor or one of its facts."""
        text = " ".join((self.event, self.actor, *self.facts.values())).lower()
        return all(word in text for word in words.lower().split())
