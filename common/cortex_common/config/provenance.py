"""Settings as rows of key, value and origin, secrets hidden: for people who ask what is in force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cortex_common.config.base import Section
from cortex_common.config.loader import Loaded
from cortex_common.config.secrets import is_secret
from cortex_common.schema.base import Wire

T = TypeVar("T", bound=Section)

HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that is in force.

    Attributes:
        key: dotted, such as "gateway.listen" or "neurons.0.name".
        value: as JSON has it; `HIDDEN` for a secret.
        origin: file and line, "$VARIABLE", or "default".
    """

    key: str
    value: Any
    origin: str


def settings(loaded: Loaded[T]) -> tuple[Setting, ...]:
    """All values of a file's schema, with where each came from."""
    plain = loaded.value.model_dump(mode="json")
    return tuple(
        Setting(
            key, HIDDEN if value is not None and is_secret(key) else value, _origin(key, loaded)
        )
        for key, value in _flat(plain)
    )


def _origin(key: str, loaded: Loaded[T]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if found := loaded.origins.get(".".join(parts[:length])):
            return found
    return "default"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield path, value
        return
    for key, inner in pairs:
        yield from _flat(inner, f"{path}.{key}" if path else key)


class ConfigView(Wire):
    """GET /operator/v1/config: what a gateway runs by.

    Attributes:
        gateway: of cortex.toml and its variables.
        models: of models.toml.
    """

    gateway: tuple[Setting, ...]
    models: tuple[Setting, ...]
