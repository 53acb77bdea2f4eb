"""How settings are listed."""

from __future__ import annotations

from cortex_cli.output import Kind
from cortex_cli.render.formats import toml_value
from cortex_cli.render.table import Column
from cortex_common.config.provenance import Setting


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
        columns=_columns(origin=origin),
        name=lambda s: s.key,
        nothing="nothing is set",
    )
