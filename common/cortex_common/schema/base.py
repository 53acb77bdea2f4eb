"""The base of everything that crosses a socket as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """An immutable message; keys that a newer peer adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class StrictWire(Wire):
    """A message that people write by hand too: an unknown key is an error, not a wish unheard."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
