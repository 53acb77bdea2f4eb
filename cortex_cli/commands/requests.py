"""`cortex requests`: list and cancel requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import BulkAction, Outcome, parse_seconds, run_bulk
from cortex_cli.client import connect, run
from cortex_cli.options import command_group, output_format
from cortex_cli.output import stdout_colors, stdout_width, write_items
from cortex_cli.render.output_format import OutputFormat, format_items
from cortex_cli.render.requests import REQUESTS, filter_requests
from cortex_cli.watch import poll
from cortex_common.schema.operations import CANCEL
from cortex_common.schema.requests import CancelRequest, RequestList, RequestView

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = command_group("List and cancel requests")


@app.command(
    "ls",
    epilog="Examples: `cortex requests ls -w`, `cortex requests ls --model qwen --slow 30s -o json`",
)
def ls(
    *,
    model: Annotated[str, typer.Option(help="Only models whose name contains this")] = "",
    slow: Annotated[
        str | None,
        typer.Option(
            "--slow", metavar="TIME", help="Only requests that took this long, such as 10s"
        ),
    ] = None,
    active: Annotated[bool, typer.Option("--active", help="Only requests in flight")] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Maximum number of finished requests")
    ] = 30,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List requests in flight, oldest first, then finished ones, newest first."""
    selected = output_format(output, as_json=json, quiet=quiet)
    min_ms = parse_seconds(slow, "--slow") * 1000 if slow else 0.0
    # A filter searches all requests that the gateway remembers.
    fetched = None if model or min_ms else 0 if active else limit

    def select(requests: RequestList) -> list[RequestView]:
        matching = filter_requests(requests, model, min_ms)
        in_flight = [r for r in matching if r.active]
        finished = [] if active else [r for r in matching if not r.active][:limit]
        return in_flight + finished

    if watch:
        colors = stdout_colors()

        def draw(requests: RequestList) -> str:
            rows = select(requests)
            return format_items(
                REQUESTS,
                rows,
                selected.streaming,
                colors=colors,
                headers=not no_headers,
                max_width=stdout_width(),
            )

        run(poll(gateway, lambda client: client.requests(fetched), draw, REQUESTS.empty_text))
        return
    requests = run(_requests(gateway, fetched))
    total = len(requests.active) + len(requests.recent)
    write_items(REQUESTS, select(requests), selected, headers=not no_headers, total=total)


async def _requests(gateway: str | None, limit: int | None) -> RequestList:
    async with connect(gateway) as client:
        return await client.requests(limit)


@app.command(CANCEL.name, help=CANCEL.help, epilog="Example: `cortex requests cancel req-7f3a`")
def cancel(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Request ids or unique prefixes of them")
    ],
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Cancel requests; see `CANCEL`."""

    async def cancel_one(client: OperatorClient, name: str) -> Outcome:
        result = await client.cancel(CancelRequest(request=name))
        owner = f" of {result.key}" if result.key else ""
        line = f"{CANCEL.past} {result.id}{owner} after {result.tokens_out} tokens"
        return Outcome(line, result)

    action = BulkAction(CANCEL.name, output_format(output, as_json=json))
    run(run_bulk(gateway, ids, action, cancel_one))
