"""`cortex plan`: what would be done, without doing it."""

from __future__ import annotations

from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.bulk import device_indices
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, stdout_paint, write_one
from cortex_cli.render.defrag import DEFRAGS, defrag_text
from cortex_cli.render.plan import (
    DRAIN_PLANS,
    EVICTION_PLANS,
    PLANS,
    drain_text,
    eviction_line,
    plan_text,
)
from cortex_common.schema.operations import EvictModelRequest, NodeRequest
from cortex_common.schema.plans import (
    DefragRequest,
    DefragView,
    DrainPlan,
    PlanLoadRequest,
    PlannedEviction,
    PlanView,
)

app = noun("See what would be done, and why")

_REFUSED = 6


@app.command(
    "load",
    epilog="Ends with 6 when it can't be loaded. Example: `cortex plan load qwen3-32b --gpu beast/0`",
)
def load(
    model: options.Model,
    *,
    node: options.OnNode = None,
    gpu: options.OnDevices = None,
    replica: Annotated[
        bool, typer.Option("--replica", help="Load another instance even if one is ready")
    ] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show where a model would go, who would make room, and why each device was or was not chosen."""
    where, devices = device_indices(node, gpu or [])
    ask = PlanLoadRequest(model=model, node=where, devices=devices, replica=replica)
    found = run(_plan(gateway, ask))
    form = chosen(output, as_json=json, quiet=False)
    write_one(PLANS, found, form, plan_text(found, stdout_paint()))
    if found.action == "impossible":
        raise typer.Exit(_REFUSED)


@app.command("evict", epilog="Example: `cortex plan evict qwen3-32b --node beast`")
def evict(
    model: options.Model,
    *,
    node: options.OnNode = None,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show which instance of a model would go, what that frees and whom it disturbs."""

    async def found() -> PlannedEviction:
        async with connect(gateway) as client:
            return await client.plan_evict(EvictModelRequest(model=model, node=node))

    eviction = run(found())
    form = chosen(output, as_json=json, quiet=False)
    write_one(EVICTION_PLANS, eviction, form, eviction_line(eviction))


@app.command("drain", epilog="Example: `cortex plan drain beast`")
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", autocompletion=completion.nodes)],
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show where each model of a node would go if the node were emptied."""

    async def found() -> DrainPlan:
        async with connect(gateway) as client:
            return await client.plan_drain(NodeRequest(node=node))

    plan = run(found())
    form = chosen(output, as_json=json, quiet=False)
    write_one(DRAIN_PLANS, plan, form, drain_text(plan))


@app.command(
    "defrag", epilog="The same as `cortex defrag --dry-run`. Example: `cortex plan defrag`"
)
def defrag(
    *,
    model: options.RoomFor = None,
    node: options.OnNode = None,
    cross_node: options.CrossNode = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show the moves that make one large free block, and the attached engines that are due for a restart."""

    async def found() -> DefragView:
        async with connect(gateway) as client:
            return await client.plan_defrag(
                DefragRequest(model=model, node=node, cross_node=cross_node)
            )

    plan = run(found())
    form = chosen(output, as_json=json, quiet=False)
    write_one(DEFRAGS, plan, form, defrag_text(plan, stdout_paint()))


async def _plan(gateway: str | None, ask: PlanLoadRequest) -> PlanView:
    async with connect(gateway) as client:
        return await client.plan_load(ask)
