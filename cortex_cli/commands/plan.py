"""`cortex plan`: show what an operation would do, and why."""

from __future__ import annotations

from typing import TypeVar

import typer
from pydantic import BaseModel

from cortex_cli import options
from cortex_cli.bulk import parse_devices
from cortex_cli.client import connect, run
from cortex_cli.options import command_group, output_format
from cortex_cli.output import stdout_colors, write_item
from cortex_cli.render.defrag import DEFRAGS, defrag_text
from cortex_cli.render.output_format import OutputFormat
from cortex_cli.render.plan import (
    DRAIN_PLANS,
    EVICTION_PLANS,
    PLANS,
    drain_text,
    eviction_line,
    plan_text,
)
from cortex_common.schema.operation import Operation
from cortex_common.schema.operations import (
    PLAN_DEFRAG,
    PLAN_DRAIN,
    PLAN_EVICT,
    PLAN_LOAD,
    EvictModelRequest,
    NodeRequest,
)
from cortex_common.schema.plans import DefragRequest, PlanLoadRequest

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")

app = command_group("Show what an operation would do, and why")

_EXIT_IMPOSSIBLE = 6


async def _plan(
    gateway: str | None, operation: Operation[Request, Response], request: Request
) -> Response:
    async with connect(gateway) as client:
        return await client.run(operation, request)


@app.command(
    "load",
    epilog="Exits with 6 if the model can't be loaded. Example: `cortex plan load qwen3-32b --gpu beast/0`",
)
def load(
    model: options.Model,
    *,
    node: options.OnNode = None,
    gpu: options.OnDevices = None,
    replica: options.Replica = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show where a model would be loaded, what would be evicted, and the verdict on each device."""
    where, devices = parse_devices(node, gpu or [])
    request = PlanLoadRequest(model=model, node=where, devices=devices, replica=replica)
    plan = run(_plan(gateway, PLAN_LOAD, request))
    write_item(PLANS, plan, output_format(output, as_json=json), plan_text(plan, stdout_colors()))
    if plan.action == "impossible":
        raise typer.Exit(_EXIT_IMPOSSIBLE)


@app.command("evict", epilog="Example: `cortex plan evict qwen3-32b --node beast`")
def evict(
    model: options.Model,
    *,
    node: options.OnNode = None,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show which instance of a model would be evicted, what that frees and which requests it affects."""
    plan = run(_plan(gateway, PLAN_EVICT, EvictModelRequest(model=model, node=node)))
    write_item(EVICTION_PLANS, plan, output_format(output, as_json=json), eviction_line(plan))


@app.command("drain", epilog="Example: `cortex plan drain beast`")
def drain(
    node: options.Node,
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show where each model of a node would go if the node were drained."""
    plan = run(_plan(gateway, PLAN_DRAIN, NodeRequest(node=node)))
    write_item(DRAIN_PLANS, plan, output_format(output, as_json=json), drain_text(plan))


@app.command("defrag", epilog="Same as `cortex defrag --dry-run`. Example: `cortex plan defrag`")
def defrag(
    *,
    model: options.ForModel = None,
    node: options.OnNode = None,
    cross_node: options.CrossNode = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show the moves that consolidate free memory, and the restarts of attached engines that are due."""
    request = DefragRequest(model=model, node=node, cross_node=cross_node)
    plan = run(_plan(gateway, PLAN_DEFRAG, request))
    write_item(
        DEFRAGS, plan, output_format(output, as_json=json), defrag_text(plan, stdout_colors())
    )
