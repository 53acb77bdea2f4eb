"""`cortex requests`: who asks for what, how far it is, and ending it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import Done, Verb, each, seconds_of
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, as_text, live, say, stdout_paint
from cortex_cli.render.requests import REQUESTS, chosen_requests
from cortex_cli.watch import poll
from cortex_common.schema.requests import CancelRequest, RequestList

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = noun("List requests; end one")


@app.command(
    "ls",
    epilog="Examples: `cortex requests ls -w`, `cortex requests ls --model qwen --slow 30s -o json`",
)
def ls(
    *,
    model: Annotated[str, typer.Option(help="Only of models with this word in their name")] = "",
    slow: Annotated[
        str | None, typer.Option("--slow", metavar="TIME", help="Only what took so long, like 10s")
    ] = None,
    active: Annotated[bool, typer.Option("--active", help="Only what is under way")] = False,
    last: Annotated[int, typer.Option("--last", min=0, help="So many that ended")] = 30,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
    watch: options.Watch = False,
) -> None:
    """List requests under way, oldest first, then those that ended, newest first."""
    form = chosen(output, as_json=json, quiet=quiet)
    least_ms = seconds_of(slow, "--slow") * 1000 if slow else 0.0
    paint = stdout_paint()

    # All are of use to those who look for some of them.
    most = None if model or least_ms else 0 if active else last

    def draw(found: RequestList, form: Output) -> str:
        kept = chosen_requests(found, model, least_ms)
        under_way = [r for r in kept if r.active]
        ended = [] if active else [r for r in kept if not r.active][:last]
        return as_text(REQUESTS, under_way + ended, form, paint=paint, headers=not no_headers)

    if watch:
        run(
            poll(
                gateway,
                lambda client: client.requests(most),
                lambda found: draw(found, live(form)),
                REQUESTS.nothing,
            )
        )
        return
    found = run(_requests(gateway, most))
    if text := draw(found, form):
        sys.stdout.write(f"{text}\n")
    elif form in {Output.TABLE, Output.WIDE}:
        known = len(found.active) + len(found.recent)
        say(f"none of the {known} fits" if known else REQUESTS.nothing)


async def _requests(gateway: str | None, most: int | None) -> RequestList:
    async with connect(gateway) as client:
        return await client.requests(most)


@app.command("cancel", epilog="Example: `cortex requests cancel req-7f3a`")
def cancel(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Ids, or unique beginnings of them")
    ],
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """End requests: their clients are told, their engines stop."""

    async def one(client: OperatorClient, name: str) -> Done:
        done = await client.cancel(CancelRequest(request=name))
        line = f"cancelled {done.id} of {done.key or 'nobody'} after {done.tokens_out} tokens"
        return Done(line, done)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, ids, Verb("cancel", form), one))
