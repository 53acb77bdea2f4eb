"""`cortex doctor`: what may be wrong, and what to do about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.client import connect, run, target
from cortex_cli.color import Paint
from cortex_cli.config_files import File, read_any, system_file
from cortex_cli.doctor.checks import (
    FINDINGS,
    Finding,
    Verdict,
    counted,
    error,
    fleet_checks,
    host_checks,
    ok,
    worst,
)
from cortex_cli.doctor.clients import Client
from cortex_cli.error_exit import describe
from cortex_cli.options import chosen, verb
from cortex_cli.output import Output, as_text, say, stdout_paint
from cortex_cli.referenced_files import look
from cortex_common import __version__
from cortex_common.errors import ConfigError, CortexError
from cortex_common.schema.fleet import FleetSnapshot

app = verb()


@app.command(
    epilog="Ends with 1 when something is broken. Examples: `cortex doctor`, `cortex doctor --strict -o json`, "
    "`cortex doctor --client claude-code --model qwen3`"
)
def doctor(
    *,
    client: Annotated[
        Client | None,
        typer.Option(help="Ask a model for all that this client needs, instead"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Which one; default: one that is ready", autocompletion=completion.models
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors")] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Find what is wrong with the fleet, or for a kind of client.

    Checks host, configuration, gateway and nodes; with --client, asks a model for all that such a client needs.
    """
    if client is None:
        findings = [*_config(), *host_checks(_disk()), *_gateway(gateway)]
    else:
        findings = _client(gateway, client, model)
    text = as_text(
        FINDINGS, findings, chosen(output, as_json=json, quiet=False), paint=stdout_paint()
    )
    sys.stdout.write(f"{text}\n")
    say(counted(findings))
    verdict = worst(findings)
    if verdict is Verdict.ERROR or (strict and verdict is Verdict.WARNING):
        raise typer.Exit(1)


def _disk() -> Path:
    """Where weights are usually kept; a daemon's user may have no home."""
    home = Path.home()
    return home if home.exists() else Path("/")


def _config() -> list[Finding]:
    found = []
    for file in File:
        path = system_file(file)
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            found.append(ok(str(path), "left out: only root and its service may read it"))
            continue
        try:
            loaded = read_any(file, path, os.environ)
            wrong = [] if file is File.MODELS else look(loaded, os.environ).wrong
        except ConfigError as failed:
            wrong = failed.message.splitlines()
        if wrong:
            found.append(error(str(path), wrong[0], f"`cortex config check {path}` tells all"))
        else:
            found.append(ok(str(path), "valid"))
    return found


def _gateway(gateway: str | None) -> list[Finding]:
    try:
        where = target(gateway, os.environ)
        fleet = run(_fleet(gateway))
    except CortexError as failed:
        said = describe(failed, Paint()).splitlines()
        hint = said[-1].removeprefix("hint: ") if len(said) > 1 else ""
        return [error("gateway", failed.message, hint)]
    return [ok("gateway", where.url), *fleet_checks(fleet, __version__)]


def _client(gateway: str | None, client: Client, model: str | None) -> list[Finding]:
    from cortex_cli.doctor.run import probe

    return run(probe(target(gateway, os.environ), client, model))


async def _fleet(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()
