"""`cortex nodes`: list, cordon and drain nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import NODES, BulkAction, Outcome, confirm, parse_seconds, run_bulk
from cortex_cli.client import fetch_fleet, run
from cortex_cli.options import command_group, output_format
from cortex_cli.output import list_fleet, stdout_colors, write_item
from cortex_cli.render import fleet as fleet_lists
from cortex_cli.render.details import node_text
from cortex_cli.render.output_format import OutputFormat
from cortex_cli.render.plan import drain_text
from cortex_common.errors import NodeNotFound
from cortex_common.schema.operation import Operation
from cortex_common.schema.operations import (
    CORDON,
    DRAIN,
    UNCORDON,
    DrainNodeRequest,
    NodeRequest,
    NodeResult,
)

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = command_group("List, cordon and drain nodes")


@app.command("ls", epilog="Examples: `cortex nodes ls`, `cortex nodes ls -o wide`")
def ls(
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List nodes with their devices, memory and versions."""
    list_fleet(
        fleet_lists.NODES,
        lambda fleet: fleet.nodes,
        gateway=gateway,
        output=output_format(output, as_json=json, quiet=quiet),
        headers=not no_headers,
        watching=watch,
    )


@app.command("describe", epilog="Example: `cortex nodes describe beast`")
def describe(
    node: options.Node,
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show a node's host, versions, devices, and instances with the reason for their placement."""
    snapshot = run(fetch_fleet(gateway))
    view = snapshot.node(node)
    if view is None:
        raise NodeNotFound.for_name(node, (n.name for n in snapshot.nodes))
    text = node_text(view, snapshot, stdout_colors())
    write_item(fleet_lists.NODES, view, output_format(output, as_json=json), text)


def _add_command(operation: Operation[NodeRequest, NodeResult]) -> None:
    """Add the command of an operation whose request is only the node."""

    @app.command(
        operation.name, help=operation.help, epilog=f"Example: `{operation.command} beast`"
    )
    def command(
        nodes: options.Nodes,
        *,
        gateway: options.Gateway = None,
        output: options.Output = OutputFormat.TABLE,
        json: options.Json = False,
    ) -> None:
        async def run_one(client: OperatorClient, name: str) -> Outcome:
            result = await client.run(operation, NodeRequest(node=name))
            return Outcome(f"{operation.past} {result.node}", result)

        action = BulkAction(operation.name, output_format(output, as_json=json), NODES)
        run(run_bulk(gateway, nodes, action, run_one))


_add_command(CORDON)
_add_command(UNCORDON)


@app.command(
    DRAIN.name, help=DRAIN.help, epilog="Example: `cortex nodes drain beast --timeout 10m`"
)
def drain(
    nodes: options.Nodes,
    *,
    timeout: Annotated[
        str, typer.Option(help="How long to wait for requests in flight, such as 10m")
    ] = "5m",
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Drain nodes; see `DRAIN`."""
    timeout_s = parse_seconds(timeout, "--timeout")
    if not dry_run:
        confirm(f"move or unload everything on {', '.join(nodes)}?", yes=yes)

    async def drain_one(client: OperatorClient, name: str) -> Outcome:
        if dry_run:
            plan = await client.plan_drain(NodeRequest(node=name))
            return Outcome(drain_text(plan), plan)
        result = await client.drain(DrainNodeRequest(node=name, timeout_s=timeout_s))
        parts = [
            f"{label} {', '.join(models)}"
            for label, models in (
                ("moved", result.moved),
                ("unloaded", result.unloaded),
                ("kept", result.kept),
            )
            if models
        ]
        summary = f": {'; '.join(parts)}" if parts else ""
        return Outcome(f"{DRAIN.past} {result.node}{summary}", result)

    message = "the drain continues; `cortex nodes uncordon` stops it"
    selected = output_format(output, as_json=json)
    run(
        run_bulk(
            gateway, nodes, BulkAction(DRAIN.name, selected, NODES, dry_run, message), drain_one
        )
    )
