"""The effective settings as rows of key, value and origin, with secrets hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cortex_common.config.base import Section
from cortex_common.config.loader import LoadedConfig
from cortex_common.config.secrets import HIDDEN, hide_secret_arguments, hide_userinfo, is_secret
from cortex_common.schema.base import WireModel

T = TypeVar("T", bound=Section)


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective setting.

    Attributes:
        key: dotted, such as "gateway.listen" or "neurons.0.name".
        value: as in JSON; `HIDDEN` for a secret.
        origin: file and line, "$VARIABLE", or "default".
    """

    key: str
    value: Any
    origin: str


class ConfigView(WireModel):
    """GET /operator/v1/config: the effective configuration of a gateway.

    Attributes:
        gateway: settings of cortex.toml and its environment variables.
        models: settings of models.toml.
    """

    gateway: tuple[Setting, ...]
    models: tuple[Setting, ...]


def list_settings(loaded: LoadedConfig[T]) -> tuple[Setting, ...]:
    """Return all settings of a file, including defaults, with the origin of each."""
    return tuple(
        Setting(key, _visible(key, value), _origin(key, loaded))
        for key, value in _flatten(loaded.value.model_dump(mode="json"))
    )


def _visible(key: str, value: Any) -> Any:
    """Return the value without secrets. All environment variables of engines are hidden: any can be one."""
    parts = key.split(".")
    if value is not None and (is_secret(key) or "env" in parts[-2:-1]):
        return HIDDEN
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return hide_secret_arguments(value)
    return hide_userinfo(value) if isinstance(value, str) else value


def _origin(key: str, loaded: LoadedConfig[T]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if origin := loaded.origins.get(".".join(parts[:length])):
            return origin
    return "default"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield path, value
        return
    for key, inner in pairs:
        yield from _flatten(inner, f"{path}.{key}" if path else key)
