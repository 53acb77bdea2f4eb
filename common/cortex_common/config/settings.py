"""Settings as rows of key, value and origin, secrets hidden: for people who ask what is in force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cortex_common.config.load import Loaded
from cortex_common.config.section import Section
from cortex_common.wire import Wire

T = TypeVar("T", bound=Section)

_SECRET_WORDS = ("token", "secret", "password", "api_key", "apikey")
_PATHS = ("tls.key", "certificate_key")
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


def is_secret(key: str) -> bool:
    """Whether a dotted key names a secret; files that hold secrets are none."""
    # Counted tokens ("tokens_per_minute") are no secret ones.
    last = key.rsplit(".", 1)[-1].lower().replace("tokens", "")
    if last.endswith(("_file", "_path")) or key.endswith(_PATHS):
        return False
    return last == "key" or last.endswith("_key") or any(word in last for word in _SECRET_WORDS)


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
