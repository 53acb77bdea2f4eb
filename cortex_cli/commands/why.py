"""`cortex why`: why a request went where it went, and what it waited for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, document
from cortex_cli.render.details import why_text
from cortex_common.errors import Conflict, NotFound
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestList, RequestView

app = verb()


@app.command(epilog="The id is in the answer's header x-request-id. Example: `cortex why req-7f3a`")
def why(
    ident: Annotated[str, typer.Argument(metavar="ID", help="Id, or a unique beginning of it")],
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Say why a request went where it went."""
    request, decisions = run(_found(gateway, ident))
    match form := chosen(output, as_json=json, quiet=False):
        case Output.TABLE | Output.WIDE:
            text = why_text(request, decisions)
        case Output.NAME:
            text = request.id
        case _:
            text = document("Why", form, request=request, decisions=decisions)
    sys.stdout.write(f"{text}\n")


async def _found(gateway: str | None, ident: str) -> tuple[RequestView, tuple[DecisionView, ...]]:
    async with connect(gateway) as client:
        request = one_of(await client.requests(), ident)
        return request, await client.decisions(request.id)


def one_of(known: RequestList, ident: str) -> RequestView:
    """The request of that id or beginning; the latest where a client gave it to several.

    Raises:
        NotFound: none is known.
        Conflict: the beginning fits several.
    """
    fits = [r for r in (*known.active, *known.recent) if r.id.startswith(ident)]
    exact = [r for r in fits if r.id == ident]
    if not fits:
        hints = ("`cortex requests ls` lists those that are remembered",)
        raise NotFound(f"no request {ident!r} is remembered", hints=hints)
    if not exact and len({r.id for r in fits}) > 1:
        raise Conflict(f"{len(fits)} requests begin with {ident!r}", hints=("say more of the id",))
    return max(exact or fits, key=lambda r: r.started)
