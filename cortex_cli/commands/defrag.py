"""`cortex defrag`: move instances until free memory is in one piece."""

from __future__ import annotations

from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import confirm, seconds_of
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, say, stdout_paint, write_one
from cortex_cli.render.defrag import DEFRAGS, defrag_text
from cortex_common.schema.plans import ApplyDefragRequest, DefragRequest, DefragView

app = verb()


@app.command(
    epilog="Examples: `cortex defrag --dry-run`, `cortex defrag --for qwen3-72b`, `cortex defrag --apply PLAN`"
)
def defrag(
    *,
    model: options.RoomFor = None,
    node: options.OnNode = None,
    max_moves: Annotated[int, typer.Option(min=1, max=8, help="At most so many moves")] = 3,
    max_time: Annotated[str, typer.Option(help="At most so much loading, like 10m")] = "10m",
    cross_node: options.CrossNode = False,
    apply: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="Make exactly the moves that this plan showed"),
    ] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Move instances until free memory is in one piece.

    The moves are shown first, with the restarts of attached engines that are due; only those are made.
    """
    request = DefragRequest(
        model=model,
        node=node,
        max_moves=max_moves,
        max_seconds=seconds_of(max_time, "--max-time", positive=True),
        cross_node=cross_node,
    )
    form = chosen(output, as_json=json, quiet=False)
    if apply is not None:
        _write(run(_apply(gateway, request, apply)), form)
        return
    plan = run(_plan(gateway, request))
    over = dry_run or not plan.plan
    if over or form in {Output.TABLE, Output.WIDE}:
        _write(plan, form)
    elif not yes:
        # One document is all that stdout has room for; who is asked must see the moves all the same.
        say(defrag_text(plan, stdout_paint()))
    if over:
        return
    confirm(question(plan), yes=yes)
    _write(run(_apply(gateway, request, plan.plan)), form)


def question(plan: DefragView) -> str:
    """What is asked before it is done."""
    restarts = sum(r.chosen for r in plan.restarts)
    moves = len(plan.moves)
    parts = [f"make {f'these {moves} moves' if moves != 1 else 'this move'}"] if moves else []
    parts += [f"restart {restarts} attached engine{'s' * (restarts != 1)}"] if restarts else []
    return f"{' and '.join(parts)}?"


def _write(found: DefragView, form: Output) -> None:
    write_one(DEFRAGS, found, form, defrag_text(found, stdout_paint()))


async def _plan(gateway: str | None, request: DefragRequest) -> DefragView:
    async with connect(gateway) as client:
        return await client.plan_defrag(request)


async def _apply(gateway: str | None, request: DefragRequest, plan: str) -> DefragView:
    async with connect(gateway) as client:
        return await client.defrag(ApplyDefragRequest(request=request, plan=plan))
