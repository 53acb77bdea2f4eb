"""`cortex version`: versions of command, gateway and nodes."""

from __future__ import annotations

import os
from typing import Annotated, NamedTuple

import typer

from cortex_cli import options
from cortex_cli.client import fetch_fleet, run, target
from cortex_cli.color import Colors
from cortex_cli.error_exit import describe
from cortex_cli.options import output_format, single_command
from cortex_cli.output import notify, stderr_colors, stdout_colors
from cortex_cli.render.output_format import ListKind, OutputFormat, format_items
from cortex_cli.terminal import write_out
from cortex_common import __version__
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import FleetSnapshot

app = single_command()

_UNKNOWN = "unknown"


class ComponentVersion(NamedTuple):
    """Version of one component.

    Attributes:
        part: "command", "gateway" or "node".
        name: URL of the gateway or name of the node.
        version: the version, or "unknown".
    """

    part: str
    name: str
    version: str


VERSIONS: ListKind[ComponentVersion] = ListKind(
    "VersionList", (), lambda v: v.version, "no version", lambda v: v._asdict()
)


@app.command(epilog="Examples: `cortex version`, `cortex version --client -o json`")
def version(
    *,
    client: Annotated[
        bool, typer.Option("--client", help="Show the version of the command only")
    ] = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show versions of command, gateway and nodes."""
    fleet = None
    if not client:
        try:
            fleet = run(fetch_fleet(gateway))
        except CortexError as error:
            # The version of the command is still useful.
            notify(describe(error, stderr_colors()))
    selected = output_format(output, as_json=json)
    url = target(gateway, os.environ).url if fleet else None
    write_out(_format(list_versions(fleet, url), selected, stdout_colors()) + "\n")


def list_versions(fleet: FleetSnapshot | None, url: str | None) -> list[ComponentVersion]:
    """Return the versions of all components that are known, the command first."""
    versions = [ComponentVersion("command", "cortex", __version__)]
    if fleet is not None:
        gateway = fleet.gateway_version or _UNKNOWN
        versions.append(ComponentVersion("gateway", url or "", gateway))
        versions += [
            ComponentVersion("node", n.name, n.neuron_version or _UNKNOWN)
            for n in fleet.nodes
            if not n.upstream
        ]
    return versions


def _format(versions: list[ComponentVersion], output: OutputFormat, colors: Colors) -> str:
    own = versions[0].version
    if output.tabular:
        return "\n".join(_line(v, own, colors) for v in versions)
    if output is OutputFormat.NAME:
        return own
    return format_items(VERSIONS, versions, output, colors=colors)


def _line(component: ComponentVersion, own: str, colors: Colors) -> str:
    part, name, number = component
    differs = "" if number in {own, _UNKNOWN} else colors.warn("  differs from the command")
    return f"{part} {name} {number}{differs}"
