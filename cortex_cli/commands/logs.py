"""`cortex logs`: show the log of the gateway, a node or an engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.bulk import parse_seconds
from cortex_cli.client import connect, run
from cortex_cli.logs import LogSource, log_source, write_engine_log
from cortex_cli.options import output_format, single_command
from cortex_cli.output import stdout_colors, write_items
from cortex_cli.render.log import LEVELS, LOG_LINES, format_line
from cortex_cli.render.output_format import OutputFormat, format_items
from cortex_cli.terminal import write_out
from cortex_common.log_buffer import MAX_TAIL_LINES, LogLine

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

LinePredicate = Callable[[LogLine], bool]

app = single_command()


@app.command(
    epilog="Examples: `cortex logs gateway -f`, `cortex logs beast --level warn --since 1h`, "
    "`cortex logs beast/qwen3-32b`. Requests: `cortex requests ls`."
)
def logs(
    name: Annotated[
        str,
        typer.Argument(
            metavar="gateway|NODE|MODEL|NODE/MODEL", autocompletion=completion.log_sources
        ),
    ],
    *,
    follow: options.Follow = False,
    tail: Annotated[
        int, typer.Option("--tail", min=0, max=MAX_TAIL_LINES, help="Number of past lines")
    ] = 200,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only recent lines, such as 10m or 2h")
    ] = None,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help=f"Minimum level: {', '.join(LEVELS)}")
    ] = "debug",
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """Show the log of the gateway, a node or an engine."""
    if level not in LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LEVELS)}", param_hint="--level")
    oldest = time.time() - parse_seconds(since, "--since") if since else 0.0
    selected = output_format(output, as_json=json)

    def matches(line: LogLine) -> bool:
        severity = LEVELS.index(line.level) if line.level in LEVELS else len(LEVELS)
        return line.at >= oldest and severity >= LEVELS.index(level)

    async def show() -> None:
        async with connect(gateway) as client:
            source = log_source(name, await client.fleet())
            if source.model is not None:
                if since is not None or level != "debug" or selected is not OutputFormat.TABLE:
                    raise typer.BadParameter(
                        "an engine's log is plain text and does not support --since, --level and -o"
                    )
                await _show_engine_log(client, source, tail, follow=follow)
            elif follow:
                await _follow(client, source, tail, matches, selected)
            else:
                async with client.daemon_log(source.node, lines=tail) as stream:
                    lines = [line async for line in stream if matches(line)]
                _write_lines(lines, selected, headers=not no_headers)

    run(show())


def _write_lines(lines: list[LogLine], output: OutputFormat, *, headers: bool) -> None:
    if output is OutputFormat.TABLE and lines:
        text = "\n".join(format_line(line, stdout_colors()) for line in lines)
        write_out(f"{text}\n")
    else:
        write_items(LOG_LINES, lines, output, headers=headers)


async def _show_engine_log(
    client: OperatorClient, source: LogSource, tail: int, *, follow: bool
) -> None:
    assert source.model is not None
    async with client.log(
        source.model, lines=tail, follow=follow, instance=source.instance
    ) as chunks:
        await write_engine_log(chunks)


async def _follow(
    client: OperatorClient,
    source: LogSource,
    tail: int,
    matches: LinePredicate,
    output: OutputFormat,
) -> None:
    colors = stdout_colors()
    async with client.daemon_log(source.node, lines=tail, follow=True) as stream:
        async for line in stream:
            if matches(line):
                text = (
                    format_line(line, colors)
                    if output.tabular
                    else format_items(LOG_LINES, [line], output.streaming, colors=colors)
                )
                write_out(f"{text}\n")
                sys.stdout.flush()
