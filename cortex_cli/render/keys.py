"""Columns of the lists of keys and of usage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cortex_cli.color import Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column
from cortex_common.schema.keys import KeyLimits, KeyView, UsageRow


def _limits(limits: KeyLimits) -> str:
    parts = (
        (limits.requests_per_minute, "req/min"),
        (limits.tokens_per_minute, "tok/min"),
        (limits.max_in_flight, "concurrent"),
    )
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None)


def _expires(key: KeyView) -> str:
    return "" if key.expires is None else key.expires.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _created(key: KeyView) -> str:
    return (
        "" if key.created is None else datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
    )


KEYS: ListKind[KeyView] = ListKind(
    kind="KeyList",
    columns=(
        Column("NAME", lambda k: k.name),
        Column("SCOPES", lambda k: ",".join(k.scopes)),
        Column("MODELS", lambda k: ",".join(k.models) or "all"),
        Column("LIMITS", lambda k: _limits(k.limits) or "none"),
        Column("EXPIRES", _expires, tone=lambda k: Tone.BAD if k.expired else None),
        Column("IN FLIGHT", lambda k: str(k.in_flight), right=True),
        Column("ORIGIN", lambda k: "cortex.toml" if k.origin == "config" else "gateway"),
        Column("CREATED", _created, wide=True),
        Column("WEIGHT", lambda k: f"{k.weight:g}", right=True, wide=True),
        Column("PRIORITY", lambda k: str(k.max_priority), right=True, wide=True),
    ),
    name=lambda key: key.name,
    empty_text="no keys: the gateway serves only its own host; `cortex keys create NAME` creates one",
)


def usage_kind(group_by: Sequence[str]) -> ListKind[UsageRow]:
    """Return the list kind of usage.

    Args:
        group_by: what rows are grouped by: "day", "key", "model".
    """
    columns: tuple[tuple[str, Column[UsageRow]], ...] = (
        ("day", Column("DAY", lambda r: r.day)),
        ("key", Column("KEY", lambda r: r.key)),
        ("model", Column("MODEL", lambda r: r.model)),
    )
    group_columns = tuple(column for name, column in columns if name in group_by)
    return ListKind(
        kind="UsageList",
        columns=(
            *group_columns,
            Column("REQUESTS", lambda r: f"{r.requests:,}", right=True),
            Column("ERRORS", lambda r: f"{r.errors:,}", right=True),
            Column("TOKENS IN", lambda r: f"{r.tokens_in:,}", right=True),
            Column("TOKENS OUT", lambda r: f"{r.tokens_out:,}", right=True),
        ),
        name=lambda row: " ".join(filter(None, (row.day, row.key, row.model))),
        empty_text="no usage",
    )


def group_usage(rows: Iterable[UsageRow], group_by: Sequence[str]) -> list[UsageRow]:
    """Sum up rows by the given fields; the other fields are empty."""
    sums: dict[tuple[str, str, str], UsageRow] = {}
    for row in rows:
        day, key, model = (
            row.day if "day" in group_by else "",
            row.key if "key" in group_by else "",
            row.model if "model" in group_by else "",
        )
        previous = sums.get((day, key, model))
        sums[day, key, model] = UsageRow(
            day=day,
            key=key,
            model=model,
            requests=row.requests + (previous.requests if previous else 0),
            errors=row.errors + (previous.errors if previous else 0),
            tokens_in=row.tokens_in + (previous.tokens_in if previous else 0),
            tokens_out=row.tokens_out + (previous.tokens_out if previous else 0),
        )
    return [sums[group] for group in sorted(sums)]
