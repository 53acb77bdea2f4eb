"""`cortex models`: what can be asked for, and having it loaded and unloaded."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.actions import confirm, device_indices, each, matches, progress, seconds_of
from cortex_cli.client import run
from cortex_cli.failure import TimedOut
from cortex_cli.listing import list_fleet
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output
from cortex_cli.render.fleet import MODELS
from cortex_common.fleet import FleetSnapshot, ModelState, ModelView
from cortex_common.operator import LoadModel, UnloadModel
from cortex_common.operator_client import OperatorClient
from cortex_common.units import show_duration, show_mib

app = noun("List, load and unload models")

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="Names, aliases, patterns like 'qwen*', or - for stdin"
    ),
]


@app.command(
    "ls", epilog="Examples: `cortex models ls`, `cortex models ls 'qwen*' --loaded -o json`"
)
def ls(
    *,
    pattern: Annotated[list[str] | None, typer.Argument(metavar="[PATTERN...]")] = None,
    loaded: Annotated[bool, typer.Option("--loaded", help="Only what is loaded")] = False,
    node: Annotated[str | None, typer.Option(help="Only what is ready on this node")] = None,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List the catalogue with the state of each model."""

    def select(fleet: FleetSnapshot) -> list[ModelView]:
        return [
            m
            for m in fleet.models
            if (not pattern or any(matches(m, p) for p in pattern))
            and (not loaded or m.state is not ModelState.UNLOADED)
            and (node is None or node in m.nodes)
        ]

    list_fleet(
        MODELS,
        select,
        gateway=gateway,
        output=chosen(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )


@app.command(
    "load",
    epilog="Examples: `cortex models load qwen3-32b`, `cortex models load a b --node beast --no-wait`",
)
def load(
    models: Names,
    *,
    node: Annotated[str | None, typer.Option(help="Load it there")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE/INDEX", help="Load it on this device; repeatable"),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait, like 90s or 5m")] = "30m",
    gateway: options.Gateway = None,
) -> None:
    """Load models and wait until they answer."""
    limit = seconds_of(timeout, "--timeout")
    where, devices = device_indices(node, gpu or [])

    async def one(client: OperatorClient, name: str) -> str:
        wish = LoadModel(model=name, node=where, devices=devices, wait=wait, timeout_s=limit)
        began = time.monotonic()
        if not wait:
            action = await client.load(wish)
            return f"{action.state.value} {action.model}; watch it with `cortex ps --watch`"
        async with progress(client, name):
            action = await client.load(wish)
        if action.state is not ModelState.READY:
            raise TimedOut(
                f"{action.model} is still {action.state.value} after {timeout}",
                hints=("the load goes on; watch it with `cortex ps --watch`",),
            )
        took = show_duration(time.monotonic() - began)
        size = "" if action.vram_mb is None else f" ({show_mib(action.vram_mb)})"
        return f"loaded {action.model} on {', '.join(action.nodes)} in {took}{size}"

    run(each(gateway, models, one))


@app.command("unload", epilog="Example: `cortex models unload qwen3-32b --drain-timeout 30s`")
def unload(
    models: Names,
    *,
    drain_timeout: Annotated[
        str, typer.Option(help="How long to wait for requests under way before giving up")
    ] = "60s",
    yes: options.Yes = False,
    gateway: options.Gateway = None,
) -> None:
    """Unload models: let requests under way finish, then free the memory."""
    limit = seconds_of(drain_timeout, "--drain-timeout")

    async def one(client: OperatorClient, name: str) -> str:
        model = (await client.fleet()).model(name)
        if model is not None and model.in_flight:
            confirm(f"{model.id} has {model.in_flight} requests under way; unload it?", yes=yes)
        began = time.monotonic()
        action = await client.unload(UnloadModel(model=name, drain_timeout_s=limit))
        return f"unloaded {action.model} in {show_duration(time.monotonic() - began)}"

    run(each(gateway, models, one))
