"""Resolves the names that clients send to models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, ModelNotFound, Unavailable, nearest_names
from cortex_common.schema.bounds import MAX_NAME_LENGTH
from cortex_common.schema.instances import ModelId

_RETRY_AFTER_S = 1.0
"""Seconds within which a node has usually reported, or been found unreachable."""


class ModelAliases:
    """The ids and aliases of the model configs.

    A name resolves, in this order, to the model with that id or alias, or to the first pattern that matches it, longer
    patterns before shorter, so that "claude-haiku-*" beats "claude-*".

    Args:
        model_configs: the model configs; their ids and aliases are distinct.
        pending_nodes: see the attribute.

    Attributes:
        pending_nodes: nodes that have not reported yet, and could serve a model without a model config.
    """

    def __init__(self, model_configs: Iterable[ModelConfig], unheard: tuple[str, ...] = ()) -> None:
        self.pending_nodes = unheard
        named = [(name, ModelId(p.id)) for p in model_configs for name in (p.id, *p.aliases)]
        self._ids = {name: model for name, model in named if not is_pattern(name)}
        self._patterns = sorted(
            ((name, model) for name, model in named if is_pattern(name)),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )

    def resolve(self, name: str) -> ModelId | None:
        """Return the model id of a name or alias."""
        found = self._ids.get(name)
        if found is None and self._patterns:
            return next((m for pattern, m in self._patterns if fnmatchcase(name, pattern)), None)
        return found

    def not_found_error(
        self,
        name: str,
        loaded: Iterable[str] = (),
        is_visible: Callable[[str], bool] = lambda _name: True,
    ) -> CortexError:
        """Return the error for a name that resolves to no model, or to none yet, with the nearest names.

        Args:
            name: what the client sent.
            loaded: names that nodes serve without a model config.
            is_visible: returns whether the client may learn of a name.
        """
        if self.pending_nodes:
            return Unavailable(
                f"model {name!r} is not known yet: waiting for {', '.join(self.pending_nodes)} to report",
                hints=["GET /v1/models lists the models of this fleet"],
                retry_after=_RETRY_AFTER_S,
            )
        name = name[:MAX_NAME_LENGTH]
        close = nearest_names(name, filter(is_visible, (*self._ids, *loaded)))
        hints = [f"did you mean {', '.join(repr(c) for c in close)}?"] if close else []
        hints.append("GET /v1/models lists the models of this fleet")
        return ModelNotFound(
            f"model {name!r} does not exist", hints=hints, param="model", details={"nearest": close}
        )


def is_pattern(alias: str) -> bool:
    """Return whether an alias matches several names."""
    return "*" in alias or "?" in alias
