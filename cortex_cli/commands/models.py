"""`cortex models`: what can be asked for, and having it loaded and unloaded."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import (
    ANY_MODEL,
    LOADED,
    Done,
    Verb,
    confirm,
    device_indices,
    each,
    matches,
    progress,
    seconds_of,
)
from cortex_cli.client import connect, run
from cortex_cli.error_exit import TimedOut
from cortex_cli.logs import write_engine_log
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, list_fleet, stdout_paint
from cortex_cli.render.details import model_document, model_text
from cortex_cli.render.fleet import MODELS
from cortex_cli.render.plan import eviction_line, plan_text
from cortex_common.schema.fleet import FleetSnapshot, ModelState, ModelView
from cortex_common.schema.operations import (
    EvictModelRequest,
    LoadModelRequest,
    PinModelRequest,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import PlanLoadRequest
from cortex_common.units import format_duration, format_mib

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = noun("List, load, unload and protect models")


@app.command(
    "ls", epilog="Examples: `cortex models ls`, `cortex models ls 'qwen*' --loaded -o json`"
)
def ls(
    *,
    pattern: Annotated[list[str] | None, typer.Argument(metavar="PATTERN")] = None,
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
        among=lambda fleet: len(fleet.models),
    )


@app.command("describe", epilog="Example: `cortex models describe qwen3-32b`")
def describe(
    model: options.Model,
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show all about one model: where it is and why, estimate and measurements."""
    form = chosen(output, as_json=json, quiet=False)
    sys.stdout.write(f"{run(_described(gateway, model, form))}\n")


async def _described(gateway: str | None, name: str, form: Output) -> str:
    async with connect(gateway) as client:
        detail = await client.model(name)
        snapshot = await client.fleet()
    view = snapshot.model(detail.model)
    if form in {Output.TABLE, Output.WIDE}:
        return model_text(detail, view, snapshot, stdout_paint())
    return model_document(detail, view, snapshot, form)


@app.command(
    "load",
    epilog="Examples: `cortex models load qwen3-32b`, `cortex models load a b --node beast --no-wait`",
)
def load(
    models: options.Models,
    *,
    node: options.OnNode = None,
    gpu: options.OnDevices = None,
    pin: Annotated[bool, typer.Option("--pin", help="Protect it from eviction, too")] = False,
    replica: Annotated[
        bool, typer.Option("--replica", help="Load another instance even if one is ready")
    ] = False,
    ttl: Annotated[
        str | None, typer.Option("--ttl", help="Unload it when idle for so long, like 2h; 0s never")
    ] = None,
    dry_run: options.DryRun = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait, like 90s or 5m")] = "30m",
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Load models and wait until they answer."""
    limit = seconds_of(timeout, "--timeout", positive=True)
    idle = seconds_of(ttl, "--ttl") if ttl else None
    where, devices = device_indices(node, gpu or [])

    async def one(client: OperatorClient, name: str) -> Done:
        if dry_run:
            ask = PlanLoadRequest(model=name, node=where, devices=devices, replica=replica)
            plan = await client.plan_load(ask)
            return Done(plan_text(plan, stdout_paint()), plan)
        request = LoadModelRequest(
            model=name,
            node=where,
            devices=devices,
            wait=wait,
            timeout_s=limit,
            pin=pin,
            replica=replica,
            ttl_s=idle,
        )
        return await _loaded(client, request)

    form = chosen(output, as_json=json, quiet=False)
    goes_on = "the load goes on; watch it with `cortex ps --watch`"
    run(each(gateway, models, Verb("load", form, ANY_MODEL, dry_run, goes_on), one))


async def _loaded(client: OperatorClient, request: LoadModelRequest) -> Done:
    began = time.monotonic()
    if not request.wait:
        action = await client.load(request)
        line = f"{action.state.value} {action.model}; watch it with `cortex ps --watch`"
        return Done(line, action)
    async with progress(client, request.model):
        action = await client.load(request)
    if action.state is not ModelState.READY:
        raise TimedOut(
            f"{action.model} is still {action.state.value} after {format_duration(request.timeout_s)}",
            hints=("the load goes on; watch it with `cortex ps --watch`",),
        )
    took = format_duration(time.monotonic() - began)
    size = "" if action.vram_mb is None else f" ({format_mib(action.vram_mb)})"
    return Done(f"loaded {action.model} on {', '.join(action.nodes)} in {took}{size}", action)


@app.command("unload", epilog="Example: `cortex models unload qwen3-32b --drain-timeout 30s`")
def unload(
    models: options.Models,
    *,
    drain_timeout: options.DrainTimeout = "60s",
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Unload models: let requests under way finish, then free the memory."""
    limit = seconds_of(drain_timeout, "--drain-timeout")

    async def one(client: OperatorClient, name: str) -> Done:
        model = (await client.fleet()).model(name)
        if model is not None and model.in_flight:
            confirm(f"{model.id} has {model.in_flight} requests under way; unload it?", yes=yes)
        began = time.monotonic()
        action = await client.unload(UnloadModelRequest(model=name, drain_timeout_s=limit))
        took = format_duration(time.monotonic() - began)
        return Done(f"unloaded {action.model} in {took}", action)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, models, Verb("unload", form, LOADED), one))


@app.command(
    "logs",
    epilog="Examples: `cortex models logs qwen3-32b -f`, `cortex models logs phi --tail 1000`",
)
def logs(
    model: options.Model,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="So many of the last lines")] = 200,
    instance: Annotated[
        str | None, typer.Option(help="Of this instance; default: the one that started last")
    ] = None,
    gateway: options.Gateway = None,
) -> None:
    """Print what a model's engine wrote."""
    run(_logs(gateway, model, instance, tail, follow=follow))


async def _logs(
    gateway: str | None, model: str, instance: str | None, tail: int, *, follow: bool
) -> None:
    async with (
        connect(gateway) as client,
        client.log(model, lines=tail, follow=follow, instance=instance) as pieces,
    ):
        await write_engine_log(pieces)


@app.command("evict", epilog="Example: `cortex models evict qwen3-32b --node beast`")
def evict(
    models: options.Models,
    *,
    node: options.OnNode = None,
    drain_timeout: options.DrainTimeout = "60s",
    dry_run: options.DryRun = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """End one instance of a model; it may come back when it is asked for."""
    limit = seconds_of(drain_timeout, "--drain-timeout")

    async def one(client: OperatorClient, name: str) -> Done:
        request = EvictModelRequest(model=name, node=node, drain_timeout_s=limit)
        if dry_run:
            plan = await client.plan_evict(request)
            return Done(eviction_line(plan), plan)
        action = await client.evict(request)
        where = f" from {', '.join(action.nodes)}" if action.nodes else ""
        return Done(f"evicted {action.model}{where}; it is {action.state.value}", action)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, models, Verb("evict", form, LOADED, dry_run), one))


@app.command(
    "pin", epilog="Examples: `cortex models pin qwen3-32b`, `cortex models pin qwen3-32b --for 2h`"
)
def pin(
    models: options.Models,
    *,
    node: options.OnNode = None,
    duration: Annotated[str | None, typer.Option("--for", help="Ends by itself, like 2h")] = None,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Protect models from eviction, defragmentation and idle unload."""
    seconds = seconds_of(duration, "--for", positive=True) if duration else None

    async def one(client: OperatorClient, name: str) -> Done:
        done = await client.pin(PinModelRequest(model=name, node=node, for_s=seconds))
        where = f" on {done.node}" if done.node else ""
        limit = f" for {format_duration(seconds)}" if seconds else ""
        return Done(f"pinned {done.model}{where}{limit}", done)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, models, Verb("pin", form, ANY_MODEL), one))


@app.command("unpin", epilog="Example: `cortex models unpin qwen3-32b`")
def unpin(
    models: options.Models,
    *,
    node: options.OnNode = None,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """End pins that operators set; those of models.toml stay."""

    async def one(client: OperatorClient, name: str) -> Done:
        left = await client.unpin(UnpinModelRequest(model=name, node=node))
        still = ", ".join(p.node or "everywhere" for p in left)
        return Done(f"unpinned {name}" + (f"; still pinned: {still}" if left else ""), left)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, models, Verb("unpin", form, ANY_MODEL), one))
