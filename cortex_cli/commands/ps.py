"""`cortex ps`: what is loaded."""

from __future__ import annotations

from cortex_cli import options
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, list_fleet
from cortex_cli.render.fleet import INSTANCES, instance_rows

app = verb()


@app.command(epilog="Examples: `cortex ps -w`, `cortex ps -o wide`, `cortex ps -q`")
def ps(
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List what is loaded, and where."""
    list_fleet(
        INSTANCES,
        instance_rows,
        gateway=gateway,
        output=chosen(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )
