"""Base classes of all messages that are sent as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """An immutable message. Unknown keys, which a newer peer can send, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class StrictWireModel(WireModel):
    """A message that people also write by hand. Unknown keys are errors, so that typos are noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
