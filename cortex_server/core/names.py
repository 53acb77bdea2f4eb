"""Which model a client's name means."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_common.config.catalogue import ModelProfile
from cortex_common.errors import ModelNotFound, nearest
from cortex_common.models import ModelId


class Names:
    """Ids and aliases of a catalogue.

    Args:
        profiles: of the catalogue; their ids and aliases are all different.
    """

    def __init__(self, profiles: Iterable[ModelProfile]) -> None:
        self._ids = {
            name: ModelId(profile.id)
            for profile in profiles
            for name in (profile.id, *profile.aliases)
        }

    def resolve(self, name: str) -> ModelId | None:
        """The model id behind a name or alias."""
        return self._ids.get(name)

    def not_found(self, name: str, loaded: Iterable[str] = ()) -> ModelNotFound:
        """The error for a name that means nothing here, with what it may have been meant to be.

        Args:
            name: what the client sent.
            loaded: names that nodes serve without a profile.
        """
        close = nearest(name, [*self._ids, *loaded])
        hints = [f"did you mean {', '.join(repr(c) for c in close)}?"] if close else []
        hints.append("GET /v1/models lists the models of this fleet")
        return ModelNotFound(
            f"model {name!r} does not exist", hints=hints, param="model", details={"nearest": close}
        )
