"""`cortex usage`: requests and tokens by key, model and day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import connect, run
from cortex_cli.options import output_format, single_command
from cortex_cli.output import write_items
from cortex_cli.render.keys import group_usage, usage_kind
from cortex_cli.render.output_format import OutputFormat
from cortex_common.schema.keys import UsageRow
from cortex_common.units import parse_duration

app = single_command()


class GroupBy(StrEnum):
    """Values of --by."""

    DAY = "day"
    KEY = "key"
    MODEL = "model"


@app.command(
    epilog="Examples: `cortex usage`, `cortex usage --since 7d --by key`, `cortex usage -o json`"
)
def usage(
    *,
    since: Annotated[
        str, typer.Option(metavar="DATE|DURATION", help="First day, such as 2026-11-01 or 7d")
    ] = "30d",
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day; default: today")
    ] = None,
    by: Annotated[
        list[GroupBy] | None,
        typer.Option(help="Group rows by this; repeatable. Default: key and model"),
    ] = None,
    key: Annotated[str, typer.Option(metavar="PATTERN", help="Only these keys")] = "*",
    model: Annotated[str, typer.Option(metavar="PATTERN", help="Only these models")] = "*",
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show requests and tokens by key, model and day (UTC)."""
    first = _parse_day(since, "--since")
    last = None if until is None else _parse_day(until, "--until")
    group_by = by or [GroupBy.KEY, GroupBy.MODEL]
    rows = run(_usage(gateway, first, last))
    matching = [r for r in rows if fnmatchcase(r.key, key) and fnmatchcase(r.model, model)]
    write_items(
        usage_kind(group_by),
        group_usage(matching, group_by),
        output_format(output, as_json=json),
        headers=not no_headers,
        total=len(rows),
    )


async def _usage(gateway: str | None, first: date, last: date | None) -> tuple[UsageRow, ...]:
    async with connect(gateway) as client:
        return await client.usage(first, last)


def _parse_day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        return (datetime.now(UTC) - timedelta(seconds=parse_duration(text))).date()
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a date such as 2026-11-01 nor a duration such as 7d",
            param_hint=option,
        ) from error
    except OverflowError:
        return date.min
