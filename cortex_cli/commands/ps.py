"""`cortex ps`: list loaded instances."""

from __future__ import annotations

from cortex_cli import options
from cortex_cli.options import output_format, single_command
from cortex_cli.output import list_fleet
from cortex_cli.render.fleet import INSTANCES, instance_rows
from cortex_cli.render.output_format import OutputFormat

app = single_command()


@app.command(epilog="Examples: `cortex ps -w`, `cortex ps -o wide`, `cortex ps -q`")
def ps(
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List loaded instances."""
    list_fleet(
        INSTANCES,
        instance_rows,
        gateway=gateway,
        output=output_format(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )
