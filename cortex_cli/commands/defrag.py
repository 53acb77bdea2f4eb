"""`cortex defrag`: move instances to consolidate free memory."""

from __future__ import annotations

from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import confirm, parse_seconds
from cortex_cli.client import connect, run
from cortex_cli.options import output_format, single_command
from cortex_cli.output import notify, stderr_colors, stdout_colors, write_item
from cortex_cli.render.defrag import DEFRAGS, defrag_text
from cortex_cli.render.output_format import OutputFormat
from cortex_common.schema.plans import ApplyDefragRequest, DefragRequest, DefragView

app = single_command()


@app.command(
    epilog="Examples: `cortex defrag --dry-run`, `cortex defrag --for qwen3-72b`, `cortex defrag --apply PLAN`"
)
def defrag(
    *,
    model: options.ForModel = None,
    node: options.OnNode = None,
    max_moves: Annotated[int, typer.Option(min=1, max=8, help="Maximum number of moves")] = 3,
    max_time: Annotated[str, typer.Option(help="Maximum total load time, such as 10m")] = "10m",
    cross_node: options.CrossNode = False,
    apply: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="Make exactly the moves of a plan that was shown"),
    ] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Move instances to consolidate free memory.

    Shows the moves first, with the restarts of attached engines that are due, and makes exactly those.
    """
    request = DefragRequest(
        model=model,
        node=node,
        max_moves=max_moves,
        max_seconds=parse_seconds(max_time, "--max-time", positive=True),
        cross_node=cross_node,
    )
    selected = output_format(output, as_json=json)
    if apply is not None:
        _write(run(_apply(gateway, request, apply)), selected)
        return
    plan = run(_plan(gateway, request))
    final = dry_run or not plan.plan
    if final or selected.tabular:
        _write(plan, selected)
    elif not yes:
        # stdout takes a single document, the result; the question needs the plan nevertheless.
        notify(defrag_text(plan, stderr_colors()))
    if final:
        return
    confirm(confirmation(plan), yes=yes)
    _write(run(_apply(gateway, request, plan.plan)), selected)


def confirmation(plan: DefragView) -> str:
    """Return the question to confirm a plan."""
    restarts = sum(r.chosen for r in plan.restarts)
    moves = len(plan.moves)
    parts = [f"make {f'these {moves} moves' if moves != 1 else 'this move'}"] if moves else []
    parts += [f"restart {restarts} attached engine{'s' * (restarts != 1)}"] if restarts else []
    return f"{' and '.join(parts)}?"


def _write(view: DefragView, output: OutputFormat) -> None:
    write_item(DEFRAGS, view, output, defrag_text(view, stdout_colors()))


async def _plan(gateway: str | None, request: DefragRequest) -> DefragView:
    async with connect(gateway) as client:
        return await client.plan_defrag(request)


async def _apply(gateway: str | None, request: DefragRequest, plan: str) -> DefragView:
    async with connect(gateway) as client:
        return await client.defrag(ApplyDefragRequest(request=request, plan=plan))
