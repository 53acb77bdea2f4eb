"""Columns of the list of settings."""

from __future__ import annotations

from cortex_cli.render.formats import toml_value
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column
from cortex_common.config.provenance import Setting


def _columns(*, origin: bool) -> tuple[Column[Setting], ...]:
    columns: tuple[Column[Setting], ...] = (
        Column("KEY", lambda s: s.key),
        Column("VALUE", lambda s: toml_value(s.value)),
    )
    return (*columns, Column("ORIGIN", lambda s: s.origin)) if origin else columns


def setting_kind(*, origin: bool) -> ListKind[Setting]:
    """Return the list kind of settings, with or without the column of origins."""
    return ListKind(
        kind="SettingList",
        columns=_columns(origin=origin),
        name=lambda s: s.key,
        empty_text="no settings",
    )
