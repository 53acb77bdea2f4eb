"""`cortex nodes`: the hosts."""

from __future__ import annotations

from cortex_cli import options
from cortex_cli.listing import list_fleet
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output
from cortex_cli.render.fleet import NODES

app = noun("List the hosts of the fleet")


@app.command("ls", epilog="Examples: `cortex nodes ls`, `cortex nodes ls -o wide`")
def ls(
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List nodes with their devices, memory and versions."""
    list_fleet(
        NODES,
        lambda fleet: fleet.nodes,
        gateway=gateway,
        output=chosen(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )
