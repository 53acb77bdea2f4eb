"""`cortex why`: explain how a request was routed."""

from __future__ import annotations

from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import connect, run
from cortex_cli.options import output_format, single_command
from cortex_cli.render.details import why_text
from cortex_cli.render.output_format import OutputFormat, format_document
from cortex_cli.terminal import write_out
from cortex_common.errors import Conflict, NotFound
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestList, RequestView

app = single_command()


@app.command(epilog="The id is in the response header x-request-id. Example: `cortex why req-7f3a`")
def why(
    ident: Annotated[str, typer.Argument(metavar="ID", help="Request id or a unique prefix of it")],
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Explain how a request was routed."""
    request, decisions = run(_fetch(gateway, ident))
    match selected := output_format(output, as_json=json):
        case OutputFormat.TABLE | OutputFormat.WIDE:
            text = why_text(request, decisions)
        case OutputFormat.NAME:
            text = request.id
        case _:
            text = format_document("Why", selected, request=request, decisions=decisions)
    write_out(f"{text}\n")


async def _fetch(gateway: str | None, ident: str) -> tuple[RequestView, tuple[DecisionView, ...]]:
    async with connect(gateway) as client:
        request = find_request(await client.requests(), ident)
        return request, await client.decisions(request.id)


def find_request(requests: RequestList, ident: str) -> RequestView:
    """Return the request with an id or prefix; the latest one if a client used the id several times.

    Raises:
        NotFound: there is none.
        Conflict: the prefix is ambiguous.
    """
    matching = [r for r in (*requests.active, *requests.recent) if r.id.startswith(ident)]
    exact = [r for r in matching if r.id == ident]
    if not matching:
        hints = ("`cortex requests ls` lists the requests that the gateway remembers",)
        raise NotFound(f"there is no request {ident!r}", hints=hints)
    if not exact and len({r.id for r in matching}) > 1:
        count = len(matching)
        raise Conflict(f"{count} requests start with {ident!r}", hints=("use a longer prefix",))
    return max(exact or matching, key=lambda r: r.started)
