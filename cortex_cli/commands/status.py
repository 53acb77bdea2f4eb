"""`cortex status`: the fleet on one screen."""

from __future__ import annotations

import os

import typer

from cortex_cli import options
from cortex_cli.client import fetch_fleet, run, target
from cortex_cli.options import output_format, single_command
from cortex_cli.output import stdout_colors
from cortex_cli.render.fleet import problems
from cortex_cli.render.output_format import OutputFormat, format_document
from cortex_cli.render.status import status_text
from cortex_cli.terminal import write_out
from cortex_cli.watch import watch as watch_fleet
from cortex_common.schema.fleet import FleetSnapshot

app = single_command()


@app.command(
    epilog="Exits with 1 if there are problems. Examples: `cortex status`, `cortex status -w`"
)
def status(
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    watch: options.Watch = False,
) -> None:
    """Show the fleet on one screen."""
    selected = output_format(output, as_json=json)
    url = target(gateway, os.environ).url
    if watch:
        run(watch_fleet(gateway, lambda snapshot: _format(snapshot, url, selected.streaming)))
        return
    snapshot = run(fetch_fleet(gateway))
    write_out(f"{_format(snapshot, url, selected)}\n")
    if problems(snapshot):
        raise typer.Exit(1)


def _format(snapshot: FleetSnapshot, url: str, output: OutputFormat) -> str:
    if output.tabular:
        return status_text(snapshot, url, stdout_colors())
    if output is OutputFormat.NAME:
        return "degraded" if problems(snapshot) else "ok"
    return format_document(
        "Status", output, gateway=url, problems=problems(snapshot), fleet=snapshot
    )
