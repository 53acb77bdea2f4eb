"""`cortex events`: the audit log of the fleet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import parse_seconds
from cortex_cli.client import connect, run
from cortex_cli.options import output_format, single_command
from cortex_cli.output import stdout_colors, write_items
from cortex_cli.render.audit import EVENTS, entry_line
from cortex_cli.render.output_format import OutputFormat, format_items
from cortex_cli.terminal import write_out
from cortex_cli.watch import ConnectionLost, fleet_updates, report_lost
from cortex_common.schema.audit import AuditEntry

app = single_command()


@app.command(
    epilog="Examples: `cortex events -w`, `cortex events --since 1h --type evict -o jsonl`"
)
def events(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only recent events, such as 10m or 2h")
    ] = None,
    type_: Annotated[
        str, typer.Option("--type", metavar="TEXT", help="Only events whose name contains this")
    ] = "",
    filter_: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="WORDS",
            help="Only with these words in model, node, actor or reason",
        ),
    ] = "",
    watch: options.Watch = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show loads, evictions and other events of the fleet.

    Each has its actor and reason.
    """
    oldest = time.time() - parse_seconds(since, "--since") if since else None
    selected = output_format(output, as_json=json)

    def matches(entry: AuditEntry) -> bool:
        recent = entry.at >= (oldest or 0.0)
        return recent and type_ in entry.event and entry.matches(filter_)

    if watch:
        run(_follow(gateway, matches, selected, replay=oldest is not None))
        return
    audit_entries = run(_audit_entries(gateway))
    entries = [entry for entry in audit_entries if matches(entry)]
    write_items(EVENTS, entries, selected, headers=not no_headers, total=len(audit_entries))


async def _audit_entries(gateway: str | None) -> tuple[AuditEntry, ...]:
    async with connect(gateway) as client:
        return await client.audit()


async def _follow(
    gateway: str | None,
    matches: Callable[[AuditEntry], bool],
    output: OutputFormat,
    *,
    replay: bool,
) -> None:
    """Write entries as they arrive; with `replay`, the past ones first."""
    colors = stdout_colors()
    async with aclosing(fleet_updates(gateway, replay=replay)) as updates:
        async for update in updates:
            if isinstance(update, ConnectionLost):
                report_lost(update)
            elif isinstance(update, AuditEntry) and matches(update):
                text = (
                    entry_line(update, colors)
                    if output.tabular
                    else format_items(EVENTS, [update], output.streaming, colors=colors)
                )
                write_out(f"{text}\n")
                sys.stdout.flush()
