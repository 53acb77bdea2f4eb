"""`cortex gpus`: devices and their memory."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.options import command_group, output_format
from cortex_cli.output import list_fleet
from cortex_cli.render.fleet import (
    DEVICES,
    FRAGMENTATION,
    DeviceRow,
    device_rows,
    fragmentation_rows,
)
from cortex_cli.render.output_format import OutputFormat
from cortex_common.schema.fleet import FleetSnapshot

app = command_group("List devices and their memory")


class SortOrder(StrEnum):
    """Values of --sort."""

    NAME = "name"
    FREE = "free"


@app.command("ls", epilog="Examples: `cortex gpus ls --sort free`, `cortex gpus ls -o wide`")
def ls(
    *,
    fragmentation: Annotated[
        bool,
        typer.Option("--fragmentation", help="Show how each node's free memory is distributed"),
    ] = False,
    sort: Annotated[SortOrder, typer.Option(help="Sort order")] = SortOrder.NAME,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List devices with used, reserved, other and available memory, and their models."""

    def select(fleet: FleetSnapshot) -> list[DeviceRow]:
        rows = device_rows(fleet)
        if sort is SortOrder.FREE:
            rows.sort(key=lambda r: -r.device.vram_available_mb)
        return rows

    show: Callable[..., None] = (
        partial(list_fleet, FRAGMENTATION, fragmentation_rows)
        if fragmentation
        else partial(list_fleet, DEVICES, select)
    )
    show(
        gateway=gateway,
        output=output_format(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )
