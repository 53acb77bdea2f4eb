"""Keys and usage as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cortex_cli.color import Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column
from cortex_common.schema.keys import KeyLimits, KeyView, UsageRow


def _limits(limits: KeyLimits) -> str:
    parts = (
        (limits.requests_per_minute, "req/min"),
        (limits.tokens_per_minute, "tok/min"),
        (limits.max_in_flight, "at once"),
    )
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None)


def _expires(key: KeyView) -> str:
    return "" if key.expires is None else key.expires.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _created(key: KeyView) -> str:
    return (
        "" if key.created is None else datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
    )


KEYS: Kind[KeyView] = Kind(
    kind="KeyList",
    columns=(
        Column("NAME", lambda k: k.name),
        Column("SCOPES", lambda k: ",".join(k.scopes)),
        Column("MODELS", lambda k: ",".join(k.models) or "all"),
        Column("LIMITS", lambda k: _limits(k.limits) or "none"),
        Column("EXPIRES", _expires, tone=lambda k: Tone.BAD if k.expired else None),
        Column("BUSY", lambda k: str(k.in_flight), right=True),
        Column("FROM", lambda k: "cortex.toml" if k.origin == "config" else "gateway"),
        Column("CREATED", _created, wide=True),
        Column("WEIGHT", lambda k: f"{k.weight:g}", right=True, wide=True),
        Column("PRIORITY", lambda k: str(k.max_priority), right=True, wide=True),
    ),
    name=lambda key: key.name,
    nothing="no keys: the gateway serves its own host only; `cortex keys create NAME` makes one",
)


def usage_kind(by: Sequence[str]) -> Kind[UsageRow]:
    """How usage is listed.

    Args:
        by: what its rows are told apart by: "day", "key", "model".
    """
    columns: tuple[tuple[str, Column[UsageRow]], ...] = (
        ("day", Column("DAY", lambda r: r.day)),
        ("key", Column("KEY", lambda r: r.key)),
        ("model", Column("MODEL", lambda r: r.model)),
    )
    told_apart = tuple(column for name, column in columns if name in by)
    return Kind(
        kind="UsageList",
        columns=(
            *told_apart,
            Column("REQUESTS", lambda r: f"{r.requests:,}", right=True),
            Column("ERRORS", lambda r: f"{r.errors:,}", right=True),
            Column("TOKENS IN", lambda r: f"{r.tokens_in:,}", right=True),
            Column("TOKENS OUT", lambda r: f"{r.tokens_out:,}", right=True),
        ),
        name=lambda row: " ".join(filter(None, (row.day, row.key, row.model))),
        nothing="nothing was used",
    )


def summed(rows: Iterable[UsageRow], by: Sequence[str]) -> list[UsageRow]:
    """One row for each combination of what `by` names; the rest is empty."""
    sums: dict[tuple[str, str, str], UsageRow] = {}
    for row in rows:
        day, key, model = (
            row.day if "day" in by else "",
            row.key if "key" in by else "",
            row.model if "model" in by else "",
        )
        before = sums.get((day, key, model))
        sums[day, key, model] = UsageRow(
            day=day,
            key=key,
            model=model,
            requests=row.requests + (before.requests if before else 0),
            errors=row.errors + (before.errors if before else 0),
            tokens_in=row.tokens_in + (before.tokens_in if before else 0),
            tokens_out=row.tokens_out + (before.tokens_out if before else 0),
        )
    return [sums[place] for place in sorted(sums)]
