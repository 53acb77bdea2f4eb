"""`cortex nodes`: the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.bulk import ANY_NODE, Done, Verb, confirm, each, seconds_of
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, list_fleet, stdout_paint, write_one
from cortex_cli.render.details import node_text
from cortex_cli.render.fleet import NODES
from cortex_cli.render.plan import drain_text
from cortex_common.errors import NodeNotFound
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.operations import DrainNodeRequest, NodeRequest

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = noun("List hosts; keep work off them")

Nodes = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE",
        help="Names, patterns like 'gpu*', or - for stdin",
        autocompletion=completion.nodes,
    ),
]


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


@app.command("describe", epilog="Example: `cortex nodes describe beast`")
def describe(
    node: Annotated[str, typer.Argument(metavar="NODE", autocompletion=completion.nodes)],
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show all about one node: host, versions, devices, what it holds and why."""
    snapshot = run(_fleet(gateway))
    found = snapshot.node(node)
    if found is None:
        raise NodeNotFound.for_name(node, (n.name for n in snapshot.nodes))
    form = chosen(output, as_json=json, quiet=False)
    write_one(NODES, found, form, node_text(found, snapshot, stdout_paint()))


async def _fleet(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()


@app.command("cordon", epilog="Example: `cortex nodes cordon beast`")
def cordon(
    nodes: Nodes,
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Place no new instances on nodes; what is there stays."""

    async def one(client: OperatorClient, name: str) -> Done:
        done = await client.cordon(NodeRequest(node=name))
        return Done(f"cordoned {done.node}", done)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, nodes, Verb("cordon", form, ANY_NODE), one))


@app.command("uncordon", epilog="Example: `cortex nodes uncordon beast`")
def uncordon(
    nodes: Nodes,
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Place instances on nodes again."""

    async def one(client: OperatorClient, name: str) -> Done:
        done = await client.uncordon(NodeRequest(node=name))
        return Done(f"uncordoned {done.node}", done)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, nodes, Verb("uncordon", form, ANY_NODE), one))


@app.command("drain", epilog="Example: `cortex nodes drain beast --timeout 10m`")
def drain(
    nodes: Nodes,
    *,
    timeout: Annotated[
        str, typer.Option(help="How long requests under way may go on, like 10m")
    ] = "5m",
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Cordon nodes, and move or unload what they hold."""
    limit = seconds_of(timeout, "--timeout")
    if not dry_run:
        confirm(f"move or unload everything on {', '.join(nodes)}?", yes=yes)

    async def one(client: OperatorClient, name: str) -> Done:
        if dry_run:
            plan = await client.plan_drain(NodeRequest(node=name))
            return Done(drain_text(plan), plan)
        done = await client.drain(DrainNodeRequest(node=name, timeout_s=limit))
        parts = [
            f"{what} {', '.join(models)}"
            for what, models in (
                ("moved", done.moved),
                ("unloaded", done.unloaded),
                ("still there:", done.kept),
            )
            if models
        ]
        return Done(f"drained {done.node}" + (f": {'; '.join(parts)}" if parts else ""), done)

    form = chosen(output, as_json=json, quiet=False)
    goes_on = "the drain goes on; `cortex nodes uncordon` ends it"
    run(each(gateway, nodes, Verb("drain", form, ANY_NODE, dry_run, goes_on), one))
