"""Which model a client's name means."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, ModelNotFound, Unavailable, nearest_names
from cortex_common.schema.instances import ModelId

_HEARD_S = 1.0
"""Seconds within which a node has mostly answered, or been found to be out of reach."""


class ModelAliases:
    """Ids and aliases of a catalogue.

    A name means, in this order: the model of that id or alias; the first pattern that matches it, longer patterns
    before shorter, so that "claude-haiku-*" beats "claude-*".

    Args:
        profiles: of the catalogue; their ids and aliases are all different.

    Attributes:
        unheard: nodes that have not been heard since the gateway knows them; what they serve without a profile may be
            meant.
    """

    def __init__(self, model_configs: Iterable[ModelConfig], unheard: tuple[str, ...] = ()) -> None:
        self.unheard = unheard
        named = [(name, ModelId(p.id)) for p in model_configs for name in (p.id, *p.aliases)]
        self._ids = {name: model for name, model in named if not is_pattern(name)}
        self._patterns = sorted(
            ((name, model) for name, model in named if is_pattern(name)),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )

    def resolve(self, name: str) -> ModelId | None:
        """The model id behind a name or alias."""
        found = self._ids.get(name)
        if found is None and self._patterns:
            return next((m for pattern, m in self._patterns if fnmatchcase(name, pattern)), None)
        return found

    def not_found(self, name: str, loaded: Iterable[str] = ()) -> CortexError:
        """The error for a name that means nothing here, or nothing yet, with what it may have been meant to be.

        Args:
            name: what the client sent.
            loaded: names that nodes serve without a profile.
        """
        if self.unheard:
            return Unavailable(
                f"model {name!r} is not known yet: {', '.join(self.unheard)} has still to say what is there",
                hints=["GET /v1/models lists the models of this fleet"],
                retry_after=_HEARD_S,
            )
        close = nearest_names(name, [*self._ids, *loaded])
        hints = [f"did you mean {', '.join(repr(c) for c in close)}?"] if close else []
        hints.append("GET /v1/models lists the models of this fleet")
        return ModelNotFound(
            f"model {name!r} does not exist", hints=hints, param="model", details={"nearest": close}
        )


def is_pattern(alias: str) -> bool:
    """Whether an alias stands for many names."""
    return "*" in alias or "?" in alias
