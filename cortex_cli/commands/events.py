"""`cortex events`: what happens in the fleet, as it happens."""

from __future__ import annotations

import json as json_text
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.changes import Change, changes
from cortex_cli.client import run
from cortex_cli.listing import say, stdout_paint
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output
from cortex_cli.paint import Paint
from cortex_cli.render.fleet import state_tone
from cortex_cli.render.table import printable
from cortex_cli.watch import Lost, follow
from cortex_common.fleet import FleetSnapshot

app = verb()


@app.command(
    epilog="Examples: `cortex events`, `cortex events -o jsonl | jq .text`, `cortex events --about qwen`"
)
def events(
    *,
    about: Annotated[str, typer.Option(help="Only what has this word in its subject")] = "",
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Follow what happens in the fleet."""
    run(_follow(gateway, about, chosen(output, as_json=json, quiet=False)))


async def _follow(gateway: str | None, about: str, form: Output) -> None:
    paint = stdout_paint()
    before: FleetSnapshot | None = None
    async for seen in follow(gateway):
        if isinstance(seen, Lost):
            say(f"lost: {seen.why}; trying again in {seen.retry_in_s:.1f}s")
            continue
        for change in changes(before, seen):
            if about in change.subject:
                sys.stdout.write(f"{_line(change, form, paint)}\n")
        sys.stdout.flush()
        before = seen


def _line(change: Change, form: Output, paint: Paint) -> str:
    if form in {Output.TABLE, Output.WIDE}:
        at = datetime.fromtimestamp(change.at).astimezone().isoformat(timespec="seconds")
        return f"{paint.dim(at)}  {paint.tone(printable(change.text), state_tone(change.state))}"
    if form is Output.NAME:
        return change.subject
    return json_text.dumps(asdict(change), ensure_ascii=False)
