"""`cortex gpus`: the devices."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, list_fleet
from cortex_cli.render.fleet import DEVICES, ROOMS, DeviceRow, device_rows, room_rows
from cortex_common.schema.fleet import FleetSnapshot

app = noun("List devices and who uses their memory")


class Order(StrEnum):
    """Orders of the device list."""

    NAME = "name"
    FREE = "free"


@app.command("ls", epilog="Examples: `cortex gpus ls --sort free`, `cortex gpus ls -o wide`")
def ls(
    *,
    fragmentation: Annotated[
        bool,
        typer.Option("--fragmentation", help="How free memory lies over each node's devices"),
    ] = False,
    sort: Annotated[Order, typer.Option(help="Order of the list")] = Order.NAME,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List devices: used, promised, foreign and available memory, and the models on each."""

    def select(fleet: FleetSnapshot) -> list[DeviceRow]:
        rows = device_rows(fleet)
        if sort is Order.FREE:
            rows.sort(key=lambda r: -r.device.vram_available_mb)
        return rows

    show: Callable[..., None] = (
        partial(list_fleet, ROOMS, room_rows)
        if fragmentation
        else partial(list_fleet, DEVICES, select)
    )
    show(
        gateway=gateway,
        output=chosen(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )
