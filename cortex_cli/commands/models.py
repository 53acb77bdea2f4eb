"""`cortex models`: list, load, unload and pin models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import (
    LOADED_MODELS,
    MODELS,
    BulkAction,
    Outcome,
    confirm,
    matches,
    parse_devices,
    parse_seconds,
    run_bulk,
    show_progress,
)
from cortex_cli.client import connect, run
from cortex_cli.error_exit import TimedOut
from cortex_cli.logs import write_engine_log
from cortex_cli.options import command_group, output_format
from cortex_cli.output import list_fleet, stdout_colors
from cortex_cli.render import fleet as fleet_lists
from cortex_cli.render.details import model_document, model_text
from cortex_cli.render.output_format import OutputFormat
from cortex_cli.render.plan import eviction_line, plan_text
from cortex_cli.terminal import write_out
from cortex_common.schema.fleet import FleetSnapshot, ModelState, ModelView
from cortex_common.schema.operations import (
    EVICT,
    FORGET_SIZE,
    LOAD,
    PIN,
    UNLOAD,
    UNPIN,
    EvictModelRequest,
    ForgetSizeRequest,
    LoadModelRequest,
    PinModelRequest,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import PlanLoadRequest
from cortex_common.units import format_duration, format_mib

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = command_group("List, load, unload and pin models")

_LOAD_CONTINUES = "the load continues; watch it with `cortex ps --watch`"


@app.command(
    "ls", epilog="Examples: `cortex models ls`, `cortex models ls 'qwen*' --loaded -o json`"
)
def ls(
    *,
    pattern: Annotated[list[str] | None, typer.Argument(metavar="PATTERN")] = None,
    loaded: Annotated[bool, typer.Option("--loaded", help="Only loaded models")] = False,
    node: Annotated[
        str | None, typer.Option(help="Only models that are ready on this node")
    ] = None,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List the models of the catalogue with their state."""

    def select(fleet: FleetSnapshot) -> list[ModelView]:
        return [
            m
            for m in fleet.models
            if (not pattern or any(matches(m, p) for p in pattern))
            and (not loaded or m.state is not ModelState.UNLOADED)
            and (node is None or node in m.nodes)
        ]

    list_fleet(
        fleet_lists.MODELS,
        select,
        gateway=gateway,
        output=output_format(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
        count=lambda fleet: len(fleet.models),
    )


@app.command("describe", epilog="Example: `cortex models describe qwen3-32b`")
def describe(
    model: options.Model,
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show a model's placement and the reason for it, its estimate and measurements."""
    text = run(_describe(gateway, model, output_format(output, as_json=json)))
    write_out(f"{text}\n")


async def _describe(gateway: str | None, name: str, output: OutputFormat) -> str:
    async with connect(gateway) as client:
        detail = await client.model(name)
        snapshot = await client.fleet()
    view = snapshot.model(detail.model)
    if output.tabular:
        return model_text(detail, view, snapshot, stdout_colors())
    return model_document(detail, view, snapshot, output)


@app.command(
    LOAD.name,
    help="Load models and wait until they are ready.",
    epilog="Examples: `cortex models load qwen3-32b`, `cortex models load a b --node beast --no-wait`",
)
def load(
    models: options.Models,
    *,
    node: options.OnNode = None,
    gpu: options.OnDevices = None,
    pin: Annotated[bool, typer.Option("--pin", help="Also protect it from eviction")] = False,
    replica: options.Replica = False,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", help="Unload after this idle time, such as 2h; 0s for never"),
    ] = None,
    dry_run: options.DryRun = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready")] = True,
    timeout: Annotated[str, typer.Option(help="Maximum wait, such as 90s or 5m")] = "30m",
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Load models; see `LOAD`."""
    timeout_s = parse_seconds(timeout, "--timeout", positive=True)
    ttl_s = parse_seconds(ttl, "--ttl") if ttl else None
    where, devices = parse_devices(node, gpu or [])

    async def load_one(client: OperatorClient, name: str) -> Outcome:
        if dry_run:
            plan_request = PlanLoadRequest(model=name, node=where, devices=devices, replica=replica)
            plan = await client.plan_load(plan_request)
            return Outcome(plan_text(plan, stdout_colors()), plan)
        request = LoadModelRequest(
            model=name,
            node=where,
            devices=devices,
            wait=wait,
            timeout_s=timeout_s,
            pin=pin,
            replica=replica,
            ttl_s=ttl_s,
        )
        return await _load(client, request)

    selected = output_format(output, as_json=json)
    action = BulkAction(LOAD.name, selected, MODELS, dry_run, _LOAD_CONTINUES)
    run(run_bulk(gateway, models, action, load_one))


async def _load(client: OperatorClient, request: LoadModelRequest) -> Outcome:
    started = time.monotonic()
    if not request.wait:
        result = await client.load(request)
        line = f"{result.model} is {result.state.value}; watch it with `cortex ps --watch`"
        return Outcome(line, result)
    async with show_progress(client, request.model):
        result = await client.load(request)
    if result.state is not ModelState.READY:
        waited = format_duration(request.timeout_s)
        raise TimedOut(
            f"{result.model} is still {result.state.value} after {waited}",
            hints=(_LOAD_CONTINUES,),
        )
    duration = format_duration(time.monotonic() - started)
    size = "" if result.vram_mb is None else f" ({format_mib(result.vram_mb)})"
    line = f"{LOAD.past} {result.model} on {', '.join(result.nodes)} in {duration}{size}"
    return Outcome(line, result)


@app.command(
    UNLOAD.name,
    help="Unload models after their requests in flight have finished.",
    epilog="Example: `cortex models unload qwen3-32b --drain-timeout 30s`",
)
def unload(
    models: options.Models,
    *,
    drain_timeout: options.DrainTimeout = "60s",
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Unload models; see `UNLOAD`."""
    timeout_s = parse_seconds(drain_timeout, "--drain-timeout")

    async def unload_one(client: OperatorClient, name: str) -> Outcome:
        model = (await client.fleet()).model(name)
        if model is not None and model.in_flight:
            confirm(f"{model.id} has {model.in_flight} requests in flight; unload it?", yes=yes)
        started = time.monotonic()
        result = await client.unload(UnloadModelRequest(model=name, drain_timeout_s=timeout_s))
        duration = format_duration(time.monotonic() - started)
        return Outcome(f"{UNLOAD.past} {result.model} in {duration}", result)

    action = BulkAction(UNLOAD.name, output_format(output, as_json=json), LOADED_MODELS)
    run(run_bulk(gateway, models, action, unload_one))


@app.command(
    "logs",
    epilog="Examples: `cortex models logs qwen3-32b -f`, `cortex models logs phi --tail 1000`",
)
def logs(
    model: options.Model,
    *,
    follow: options.Follow = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Number of past lines")] = 200,
    instance: Annotated[
        str | None, typer.Option(help="Instance; default: the one that started last")
    ] = None,
    gateway: options.Gateway = None,
) -> None:
    """Show the log of a model's engine."""
    run(_logs(gateway, model, instance, tail, follow=follow))


async def _logs(
    gateway: str | None, model: str, instance: str | None, tail: int, *, follow: bool
) -> None:
    async with (
        connect(gateway) as client,
        client.log(model, lines=tail, follow=follow, instance=instance) as chunks,
    ):
        await write_engine_log(chunks)


@app.command(
    EVICT.name, help=EVICT.help, epilog="Example: `cortex models evict qwen3-32b --node beast`"
)
def evict(
    models: options.Models,
    *,
    node: options.OnNode = None,
    drain_timeout: options.DrainTimeout = "60s",
    dry_run: options.DryRun = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Evict one instance of each model; see `EVICT`."""
    timeout_s = parse_seconds(drain_timeout, "--drain-timeout")

    async def evict_one(client: OperatorClient, name: str) -> Outcome:
        request = EvictModelRequest(model=name, node=node, drain_timeout_s=timeout_s)
        if dry_run:
            plan = await client.plan_evict(request)
            return Outcome(eviction_line(plan), plan)
        result = await client.evict(request)
        where = f" from {', '.join(result.nodes)}" if result.nodes else ""
        return Outcome(f"{EVICT.past} {result.model}{where}; it is {result.state.value}", result)

    selected = output_format(output, as_json=json)
    run(
        run_bulk(
            gateway, models, BulkAction(EVICT.name, selected, LOADED_MODELS, dry_run), evict_one
        )
    )


@app.command(
    PIN.name,
    help=PIN.help,
    epilog="Examples: `cortex models pin qwen3-32b`, `cortex models pin qwen3-32b --for 2h`",
)
def pin(
    models: options.Models,
    *,
    node: options.OnNode = None,
    duration: Annotated[
        str | None, typer.Option("--for", help="Expire after this time, such as 2h")
    ] = None,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Pin models; see `PIN`."""
    seconds = parse_seconds(duration, "--for", positive=True) if duration else None

    async def pin_one(client: OperatorClient, name: str) -> Outcome:
        result = await client.pin(PinModelRequest(model=name, node=node, for_s=seconds))
        where = f" on {result.node}" if result.node else ""
        limit = f" for {format_duration(seconds)}" if seconds else ""
        return Outcome(f"{PIN.past} {result.model}{where}{limit}", result)

    action = BulkAction(PIN.name, output_format(output, as_json=json), MODELS)
    run(run_bulk(gateway, models, action, pin_one))


@app.command(UNPIN.name, help=UNPIN.help, epilog="Example: `cortex models unpin qwen3-32b`")
def unpin(
    models: options.Models,
    *,
    node: options.OnNode = None,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Unpin models; see `UNPIN`."""

    async def unpin_one(client: OperatorClient, name: str) -> Outcome:
        remaining = await client.unpin(UnpinModelRequest(model=name, node=node))
        places = ", ".join(p.node or "any node" for p in remaining)
        suffix = f"; still pinned on {places}" if remaining else ""
        return Outcome(f"{UNPIN.past} {name}{suffix}", remaining)

    action = BulkAction(UNPIN.name, output_format(output, as_json=json), MODELS)
    run(run_bulk(gateway, models, action, unpin_one))


@app.command(
    FORGET_SIZE.verb, help=FORGET_SIZE.help, epilog="Example: `cortex models forget-size qwen3-32b`"
)
def forget_size(
    models: options.Models,
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Forget the measured sizes of models; see `FORGET_SIZE`."""

    async def forget_one(client: OperatorClient, name: str) -> Outcome:
        result = await client.forget_size(ForgetSizeRequest(model=name))
        missed = ", ".join(result.unreachable)
        suffix = f"; could not ask {missed}" if missed else ""
        return Outcome(f"{FORGET_SIZE.past} {result.model}{suffix}", result)

    action = BulkAction(FORGET_SIZE.verb, output_format(output, as_json=json), MODELS)
    run(run_bulk(gateway, models, action, forget_one))
