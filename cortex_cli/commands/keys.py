"""`cortex keys`: who may use the gateway."""

from __future__ import annotations

import hashlib
import secrets
import sys
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import Done, Verb, confirm, each
from cortex_cli.client import connect, run
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, as_text, say, stdout_paint
from cortex_cli.render.formats import toml_value
from cortex_cli.render.keys import KEYS
from cortex_common.schema.keys import CreateKeyRequest, KeyView, Scope
from cortex_common.units import parse_duration

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = noun("Make, list and revoke API keys")


@app.command(
    "create",
    epilog="Examples: `cortex keys create alice --expires 90d`, "
    "`cortex keys create ci --model 'qwen*' --requests-per-minute 60 > ci.key`",
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it")],
    *,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it opens; repeatable. Default: infer")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may use, or a pattern; repeatable. Default: all"),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests a minute")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens a minute")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests at once")] = None,
    weight: Annotated[float, typer.Option(help="Its share when requests queue")] = 1.0,
    max_priority: Annotated[int, typer.Option(help="Highest X-Cortex-Priority, 0 to 9")] = 0,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DATE|DURATION", help="When it ends, like 2027-01-31 or 90d"),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Ask no gateway: print an entry for cortex.toml instead"),
    ] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Make a key and print its secret, this once."""
    form = chosen(output, as_json=json, quiet=False)
    if offline and form is not Output.TABLE:
        raise typer.BadParameter("an entry for cortex.toml is TOML", param_hint="--offline")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_in_flight": max_in_flight,
    }
    request = _valid(
        {
            "name": name,
            "scopes": scope or [Scope.INFER],
            "models": model or [],
            "limits": {k: v for k, v in limits.items() if v is not None},
            "weight": weight,
            "max_priority": max_priority,
            "expires": None if expires is None else _ending(expires),
        }
    )
    if offline:
        secret = "ctx_" + secrets.token_urlsafe(32)
        sys.stdout.write(_entry(request, secret))
        say(f"the secret of {name}, which is kept nowhere: {secret}")
        return

    async def one(client: OperatorClient, _name: str) -> Done:
        made = await client.create_key(request)
        return Done(made.secret, made)

    # Its name alone would be of no use: the secret is told this once.
    run(each(gateway, [name], Verb("create", Output.TABLE if form is Output.NAME else form), one))
    say(f"made key {name}; its secret is not shown again")


def _valid(fields: dict[str, object]) -> CreateKeyRequest:
    from pydantic import ValidationError

    try:
        return CreateKeyRequest.model_validate(fields)
    except ValidationError as failed:
        first = failed.errors()[0]
        option = str(first["loc"][-1]) if first["loc"] else "key"
        said = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            said = "up to 64 letters, digits and any of . _ - @, a letter or digit first"
        raise typer.BadParameter(said, param_hint=option.replace("_", "-")) from failed


def _ending(text: str) -> datetime:
    end, now = _moment(text), datetime.now(UTC)
    if end <= now:
        raise typer.BadParameter(f"{text!r} is over already", param_hint="--expires")
    return end


def _moment(text: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) + timedelta(seconds=parse_duration(text))
    except ValueError as failed:
        raise typer.BadParameter(
            f"{text!r} is neither a date like 2027-01-31 nor a duration like 90d",
            param_hint="--expires",
        ) from failed
    except OverflowError as failed:
        raise typer.BadParameter(
            f"{text!r} is beyond all dates; without it the key never ends", param_hint="--expires"
        ) from failed


def _entry(request: CreateKeyRequest, secret: str) -> str:
    """The [[keys]] entry of a key; only the hash of its secret."""
    values = request.model_dump(mode="json", exclude_defaults=True) | {
        "name": request.name,
        "hash": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(),
    }
    return "[[keys]]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in values.items())


@app.command("ls", epilog="Examples: `cortex keys ls`, `cortex keys ls -o wide`")
def ls(
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """List keys with what they may do; secrets are not kept."""
    form = chosen(output, as_json=json, quiet=quiet)
    text = as_text(KEYS, run(_keys(gateway)), form, paint=stdout_paint(), headers=not no_headers)
    if text:
        sys.stdout.write(f"{text}\n")
    else:
        say(KEYS.nothing)


async def _keys(gateway: str | None) -> tuple[KeyView, ...]:
    async with connect(gateway) as client:
        return await client.keys()


@app.command("revoke", epilog="Example: `cortex keys revoke alice`")
def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Which keys")],
    *,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """End keys at once; requests that they have under way go on."""
    confirm(f"revoke {', '.join(names)}?", yes=yes)

    async def one(client: OperatorClient, name: str) -> Done:
        return Done(f"revoked {name}", await client.revoke_key(name))

    before = run(_keys(gateway))  # afterwards the caller's may be gone
    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, names, Verb("revoke", form), one))
    left = {scope for key in before if key.name not in names for scope in key.scopes}
    if opened := sorted({scope for key in before for scope in key.scopes} - left):
        say(
            f"no key of the scope {' or '.join(opened)} is left: the gateway's own host needs none now"
        )
