"""`cortex keys`: create, list and revoke API keys."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import BulkAction, Outcome, confirm, run_bulk
from cortex_cli.client import connect, run
from cortex_cli.options import command_group, output_format
from cortex_cli.output import notify, write_items
from cortex_cli.render.formats import toml_value
from cortex_cli.render.keys import KEYS
from cortex_cli.render.output_format import OutputFormat
from cortex_cli.terminal import write_out
from cortex_common.schema.keys import CreateKeyRequest, KeyView, Scope
from cortex_common.units import parse_duration

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = command_group("Create, list and revoke API keys")


@app.command(
    "create",
    epilog="Examples: `cortex keys create alice --expires 90d`, "
    "`cortex keys create ci --model 'qwen*' --requests-per-minute 60 > ci.key`",
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key")],
    *,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Scope; repeatable. Default: infer")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Allowed model or pattern; repeatable. Default: all"),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests per minute")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens per minute")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Concurrent requests")] = None,
    weight: Annotated[float, typer.Option(help="Share of capacity when requests queue")] = 1.0,
    max_priority: Annotated[int, typer.Option(help="Highest X-Cortex-Priority, 0 to 9")] = 0,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DATE|DURATION", help="Expiry, such as 2027-01-31 or 90d"),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Print an entry for cortex.toml; contact no gateway"),
    ] = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Create a key and print its secret, which is not shown again."""
    selected = output_format(output, as_json=json)
    if offline and selected is not OutputFormat.TABLE:
        raise typer.BadParameter("--offline has no other output format", param_hint="--output")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_in_flight": max_in_flight,
    }
    request = _validate(
        {
            "name": name,
            "scopes": scope or [Scope.INFER],
            "models": model or [],
            "limits": {k: v for k, v in limits.items() if v is not None},
            "weight": weight,
            "max_priority": max_priority,
            "expires": None if expires is None else _expiry(expires),
        }
    )
    if offline:
        secret = "ctx_" + secrets.token_urlsafe(32)
        write_out(_toml_entry(request, secret))
        notify(f"secret of {name}, which is not stored anywhere: {secret}")
        return

    async def create_one(client: OperatorClient, _name: str) -> Outcome:
        created = await client.create_key(request)
        return Outcome(created.secret, created)

    # With -o name too, the secret is printed: it is not available later.
    effective = OutputFormat.TABLE if selected is OutputFormat.NAME else selected
    run(run_bulk(gateway, [name], BulkAction("create", effective), create_one))
    notify(f"created key {name}; its secret is not shown again")


def _validate(fields: dict[str, object]) -> CreateKeyRequest:
    from pydantic import ValidationError

    try:
        return CreateKeyRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]) if first["loc"] else "key"
        message = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            message = (
                "must have at most 64 letters, digits and . _ - @, and start with a letter or digit"
            )
        raise typer.BadParameter(message, param_hint=option.replace("_", "-")) from error


def _expiry(text: str) -> datetime:
    expiry = _parse_expiry(text)
    if expiry <= datetime.now(UTC):
        raise typer.BadParameter(f"{text!r} is in the past", param_hint="--expires")
    return expiry


def _parse_expiry(text: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) + timedelta(seconds=parse_duration(text))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a date such as 2027-01-31 nor a duration such as 90d",
            param_hint="--expires",
        ) from error
    except OverflowError as error:
        raise typer.BadParameter(
            f"{text!r} is out of range; omit --expires for a key that does not expire",
            param_hint="--expires",
        ) from error


def _toml_entry(request: CreateKeyRequest, secret: str) -> str:
    """Return the [[keys]] entry of a key, which contains the hash of its secret."""
    values = request.model_dump(mode="json", exclude_defaults=True) | {
        "name": request.name,
        "hash": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(),
    }
    return "[[keys]]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in values.items())


@app.command("ls", epilog="Examples: `cortex keys ls`, `cortex keys ls -o wide`")
def ls(
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """List keys with their scopes and limits; secrets are not stored."""
    selected = output_format(output, as_json=json, quiet=quiet)
    write_items(KEYS, run(_keys(gateway)), selected, headers=not no_headers)


async def _keys(gateway: str | None) -> tuple[KeyView, ...]:
    async with connect(gateway) as client:
        return await client.keys()


@app.command("revoke", epilog="Example: `cortex keys revoke alice`")
def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of keys")],
    *,
    yes: options.Yes = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Revoke keys immediately; their requests in flight continue."""
    confirm(f"revoke {', '.join(names)}?", yes=yes)

    async def revoke_one(client: OperatorClient, name: str) -> Outcome:
        return Outcome(f"revoked {name}", await client.revoke_key(name))

    before = run(_keys(gateway))  # afterwards, the caller's own key can be gone
    selected = output_format(output, as_json=json)
    run(run_bulk(gateway, names, BulkAction("revoke", selected), revoke_one))
    remaining = {scope for key in before if key.name not in names for scope in key.scopes}
    if orphaned := sorted({scope for key in before for scope in key.scopes} - remaining):
        scopes = " or ".join(orphaned)
        notify(
            f"no key with scope {scopes} is left: programs on the gateway's host now need none for inference "
            "and metrics, and root and the gateway's user need none for operations"
        )
