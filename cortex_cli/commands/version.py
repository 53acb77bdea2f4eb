"""`cortex version`: which versions work together."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import connect, run, target
from cortex_cli.color import Paint
from cortex_cli.error_exit import describe
from cortex_cli.options import chosen, verb
from cortex_cli.output import Kind, Output, as_text, say, stderr_paint, stdout_paint
from cortex_common import __version__
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import FleetSnapshot

app = verb()

VERSIONS: Kind[tuple[str, str, str]] = Kind(
    "VersionList",
    (),
    lambda found: found[2],
    "no version",
    lambda found: dict(zip(("part", "name", "version"), found, strict=True)),
)


@app.command(epilog="Examples: `cortex version`, `cortex version --client -o json`")
def version(
    *,
    client: Annotated[bool, typer.Option("--client", help="Do not ask the gateway")] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show versions of the command, the gateway and the nodes."""
    fleet = None
    if not client:
        try:
            fleet = run(_fleet(gateway))
        except CortexError as failed:
            # The command's own version is an answer too.
            say(describe(failed, stderr_paint()))
    form = chosen(output, as_json=json, quiet=False)
    url = target(gateway, os.environ).url if fleet else None
    sys.stdout.write(_text(versions(fleet, url), form, stdout_paint()) + "\n")


async def _fleet(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()


def versions(fleet: FleetSnapshot | None, url: str | None) -> list[tuple[str, str, str]]:
    """(part, name, version) of everything that tells one."""
    found = [("command", "cortex", __version__)]
    if fleet is not None:
        found.append(("gateway", url or "", fleet.gateway_version or "unknown"))
        neurons = [n for n in fleet.nodes if not n.upstream]
        found += [("node", n.name, n.neuron_version or "unknown") for n in neurons]
    return found


def _text(found: list[tuple[str, str, str]], form: Output, paint: Paint) -> str:
    match form:
        case Output.TABLE | Output.WIDE:
            mine = found[0][2]
            return "\n".join(
                f"{part} {name} {number}"
                + (
                    ""
                    if number in {mine, "unknown"}
                    else paint.warn("  differs from the command's")
                )
                for part, name, number in found
            )
        case Output.NAME:
            return found[0][2]
    return as_text(VERSIONS, found, form, paint=paint)
