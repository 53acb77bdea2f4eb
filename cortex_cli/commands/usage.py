"""`cortex usage`: what keys used."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, as_text, say, stdout_paint
from cortex_cli.render.keys import summed, usage_kind
from cortex_common.schema.keys import UsageRow
from cortex_common.units import parse_duration

app = verb()


class By(StrEnum):
    """What rows are told apart by."""

    DAY = "day"
    KEY = "key"
    MODEL = "model"


@app.command(
    epilog="Examples: `cortex usage`, `cortex usage --since 7d --by key`, `cortex usage -o json`"
)
def usage(
    *,
    since: Annotated[
        str, typer.Option(metavar="DATE|DURATION", help="First day, like 2026-11-01 or 7d")
    ] = "30d",
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day. Default: today")
    ] = None,
    by: Annotated[
        list[By] | None,
        typer.Option(help="What rows are told apart by; repeatable. Default: key and model"),
    ] = None,
    key: Annotated[str, typer.Option(metavar="PATTERN", help="Only these keys")] = "*",
    model: Annotated[str, typer.Option(metavar="PATTERN", help="Only these models")] = "*",
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show requests and tokens by key, model and day (UTC)."""
    first, last = _day(since, "--since"), None if until is None else _day(until, "--until")
    apart = by or [By.KEY, By.MODEL]

    async def rows() -> tuple[UsageRow, ...]:
        async with connect(gateway) as client:
            return await client.usage(first, last)

    known = run(rows())
    found = [r for r in known if fnmatchcase(r.key, key) and fnmatchcase(r.model, model)]
    kind = usage_kind(apart)
    form = chosen(output, as_json=json, quiet=False)
    text = as_text(kind, summed(found, apart), form, paint=stdout_paint(), headers=not no_headers)
    if text:
        sys.stdout.write(f"{text}\n")
    else:
        say("no key or model that was used fits" if known else kind.nothing)


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        return (datetime.now(UTC) - timedelta(seconds=parse_duration(text))).date()
    except ValueError as failed:
        raise typer.BadParameter(
            f"{text!r} is neither a date like 2026-11-01 nor a duration like 7d", param_hint=option
        ) from failed
    except OverflowError:
        return date.min
