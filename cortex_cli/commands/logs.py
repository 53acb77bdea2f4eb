"""`cortex logs`: what the gateway, a node or an engine wrote."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.bulk import seconds_of
from cortex_cli.client import connect, run
from cortex_cli.logs import LogOf, log_of, write_engine_log
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, as_text, live, say, stdout_paint
from cortex_cli.render.log import LEVELS, LOG, line_text
from cortex_common.log_buffer import MAX_TAIL_LINES, LogLine

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

Wanted = Callable[[LogLine], bool]

app = verb()


@app.command(
    epilog="Examples: `cortex logs gateway -f`, `cortex logs beast --level warn --since 1h`, "
    "`cortex logs beast/qwen3-32b`. Requests: `cortex requests ls`."
)
def logs(
    name: Annotated[
        str,
        typer.Argument(metavar="gateway|NODE|MODEL|NODE/MODEL", autocompletion=completion.loggers),
    ],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes")] = False,
    tail: Annotated[
        int, typer.Option("--tail", min=0, max=MAX_TAIL_LINES, help="So many of the last lines")
    ] = 200,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only of the last time, like 10m or 2h")
    ] = None,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help=f"Only this and worse: {', '.join(LEVELS)}")
    ] = "debug",
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show what the gateway, a node or an engine wrote."""
    if level not in LEVELS:
        raise typer.BadParameter(f"say one of {', '.join(LEVELS)}", param_hint="--level")
    first = time.time() - seconds_of(since, "--since") if since else 0.0
    form = chosen(output, as_json=json, quiet=False)

    def wanted(line: LogLine) -> bool:
        known = LEVELS.index(line.level) if line.level in LEVELS else len(LEVELS)
        return line.at >= first and known >= LEVELS.index(level)

    async def show() -> None:
        async with connect(gateway) as client:
            found = log_of(name, await client.fleet())
            if found.model is not None:
                if since is not None or level != "debug" or form is not Output.TABLE:
                    raise typer.BadParameter("an engine's log is plain text: it has no such option")
                await _engine(client, found, tail, follow=follow)
            elif follow:
                await _follow(client, found, tail, wanted, form)
            else:
                async with client.daemon_log(found.node, lines=tail) as told:
                    lines = [line async for line in told if wanted(line)]
                _list(lines, form, headers=not no_headers)

    run(show())


def _list(lines: list[LogLine], form: Output, *, headers: bool) -> None:
    if form is Output.TABLE:
        text = "\n".join(line_text(line, stdout_paint()) for line in lines)
    else:
        text = as_text(LOG, lines, form, paint=stdout_paint(), headers=headers)
    if text:
        sys.stdout.write(f"{text}\n")
    elif form in {Output.TABLE, Output.WIDE}:
        say(LOG.nothing)


async def _engine(client: OperatorClient, found: LogOf, tail: int, *, follow: bool) -> None:
    assert found.model is not None
    async with client.log(
        found.model, lines=tail, follow=follow, instance=found.instance
    ) as pieces:
        await write_engine_log(pieces)


async def _follow(
    client: OperatorClient, found: LogOf, tail: int, wanted: Wanted, form: Output
) -> None:
    paint = stdout_paint()
    tabular = form in {Output.TABLE, Output.WIDE}
    async with client.daemon_log(found.node, lines=tail, follow=True) as told:
        async for line in told:
            if wanted(line):
                text = (
                    line_text(line, paint)
                    if tabular
                    else as_text(LOG, [line], live(form), paint=paint)
                )
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
