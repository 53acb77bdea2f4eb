"""`cortex events`: what was decided about the fleet, by whom and why."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import seconds_of
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, as_text, live, say, stdout_paint
from cortex_cli.render.audit import TRAIL, entry_line
from cortex_cli.watch import ConnectionLost, fleet_updates, report_lost
from cortex_common.schema.audit import AuditEntry

app = verb()


@app.command(
    epilog="Examples: `cortex events -w`, `cortex events --since 1h --type evict -o jsonl`"
)
def events(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only of the last time, like 10m or 2h")
    ] = None,
    type_: Annotated[
        str, typer.Option("--type", metavar="WORD", help="Only with this word in the event's name")
    ] = "",
    about: Annotated[
        str, typer.Option(help="Only with these words in model, node, actor or reason")
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with what comes, until interrupted")
    ] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show what happened in the fleet, by whose wish and why."""
    first = time.time() - seconds_of(since, "--since") if since else None
    form = chosen(output, as_json=json, quiet=False)

    def wanted(entry: AuditEntry) -> bool:
        return type_ in entry.event and entry.matches(about) and entry.at >= (first or 0.0)

    if watch:
        run(_follow(gateway, wanted, form, again=first is not None))
        return
    trail = run(_trail(gateway))
    found = [entry for entry in trail if wanted(entry)]
    if text := as_text(TRAIL, found, form, paint=stdout_paint(), headers=not no_headers):
        sys.stdout.write(f"{text}\n")
    elif form in {Output.TABLE, Output.WIDE}:
        say(f"none of the {len(trail)} events fits" if trail else TRAIL.nothing)


async def _trail(gateway: str | None) -> tuple[AuditEntry, ...]:
    async with connect(gateway) as client:
        return await client.trail()


async def _follow(
    gateway: str | None, wanted: Callable[[AuditEntry], bool], form: Output, *, again: bool
) -> None:
    """Write entries as they come; `again`: those before, too."""
    paint = stdout_paint()
    async with aclosing(fleet_updates(gateway, replay=again)) as told:
        async for seen in told:
            if isinstance(seen, ConnectionLost):
                report_lost(seen)
            elif isinstance(seen, AuditEntry) and wanted(seen):
                tabular = form in {Output.TABLE, Output.WIDE}
                text = (
                    entry_line(seen, paint)
                    if tabular
                    else as_text(TRAIL, [seen], live(form), paint=paint)
                )
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
