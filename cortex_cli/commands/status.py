"""`cortex status`: the fleet on one screen."""

from __future__ import annotations

import os
import sys

import typer

from cortex_cli import options
from cortex_cli.client import connect, run, target
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, document, live, stdout_paint
from cortex_cli.render.fleet import problems
from cortex_cli.render.status import status as draw
from cortex_cli.watch import watch as watch_fleet
from cortex_common.schema.fleet import FleetSnapshot

app = verb()


@app.command(
    epilog="Ends with 1 when something is wrong. Examples: `cortex status`, `cortex status -w`"
)
def status(
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    watch: options.Watch = False,
) -> None:
    """Show the fleet on one screen."""
    form = chosen(output, as_json=json, quiet=False)
    url = target(gateway, os.environ).url
    if watch:
        run(watch_fleet(gateway, lambda snapshot: _text(snapshot, url, live(form))))
        return
    snapshot = run(_snapshot(gateway))
    sys.stdout.write(f"{_text(snapshot, url, form)}\n")
    if problems(snapshot):
        raise typer.Exit(1)


async def _snapshot(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()


def _text(snapshot: FleetSnapshot, url: str, form: Output) -> str:
    if form in {Output.TABLE, Output.WIDE}:
        return draw(snapshot, url, stdout_paint())
    if form is Output.NAME:
        return "degraded" if problems(snapshot) else "ok"
    return document("Status", form, gateway=url, problems=problems(snapshot), fleet=snapshot)
