"""Settings as rows of key, value and origin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cortex_cli.output import Kind
from cortex_cli.render.table import Column
from cortex_cli.render.toml import toml_value
from cortex_common.config.load import Loaded
from cortex_common.config.section import Section

_SECRET_WORDS = ("token", "secret", "password", "api_key", "apikey")
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


def settings(loaded: Loaded[Section]) -> list[Setting]:
    """All values of a file's schema, with where each came from."""
    plain = loaded.value.model_dump(mode="json")
    return [
        Setting(
            key, HIDDEN if value is not None and is_secret(key) else value, _origin(key, loaded)
        )
        for key, value in _flat(plain)
    ]


def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key names a secret; files that hold secrets are none."""
    # Counted tokens ("tokens_per_minute") are no secret ones.
    last = key.rsplit(".", 1)[-1].lower().replace("tokens", "")
    return not last.endswith(("_file", "_path")) and any(word in last for word in _SECRET_WORDS)


def _origin(key: str, loaded: Loaded[Section]) -> str:
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


def _columns(*, origin: bool) -> tuple[Column[Setting], ...]:
    shown: tuple[Column[Setting], ...] = (
        Column("KEY", lambda s: s.key),
        Column("VALUE", lambda s: toml_value(s.value)),
    )
    return (*shown, Column("ORIGIN", lambda s: s.origin)) if origin else shown


def setting_kind(*, origin: bool) -> Kind[Setting]:
    """How settings are listed, with or without the column of origins."""
    return Kind(
        kind="SettingList",
        plain=asdict,
        columns=_columns(origin=origin),
        name=lambda s: s.key,
        nothing="nothing is set",
    )
