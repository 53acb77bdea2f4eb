"""`cortex doctor`: diagnose the fleet, or whether a model supports a client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.client import connect, fetch_fleet, run, target
from cortex_cli.color import Colors
from cortex_cli.config_files import ConfigFile, read_any, system_file
from cortex_cli.doctor.access import access_findings
from cortex_cli.doctor.checks import fleet_checks, host_checks
from cortex_cli.doctor.clients import Client
from cortex_cli.doctor.findings import (
    FINDINGS,
    Finding,
    Verdict,
    error,
    ok,
    summary_line,
    worst_verdict,
)
from cortex_cli.error_exit import describe
from cortex_cli.options import output_format, single_command
from cortex_cli.output import notify, write_items
from cortex_cli.referenced_files import check_referenced_files
from cortex_cli.render.output_format import OutputFormat
from cortex_common import __version__
from cortex_common.errors import ConfigError, CortexError

app = single_command()


@app.command(
    epilog="Exits with 1 if there are errors. Examples: `cortex doctor`, `cortex doctor --strict -o json`, "
    "`cortex doctor --client claude-code --model qwen3`"
)
def doctor(
    *,
    client: Annotated[
        Client | None,
        typer.Option(help="Check whether a model supports this client, instead of the fleet"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to check with --client; default: a ready model",
            autocompletion=completion.models,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors")] = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Diagnose the fleet, or support for a client.

    Checks host, configuration, gateway, nodes, and who can use them; with --client, sends a model the requests that
    such a client sends.
    """
    if client is None:
        findings = [
            *_check_config(),
            *host_checks(_weights_dir()),
            *_check_fleet(gateway),
            *_check_access(gateway),
        ]
    else:
        findings = _check_client(gateway, client, model)
    write_items(FINDINGS, findings, output_format(output, as_json=json))
    notify(summary_line(findings))
    verdict = worst_verdict(findings)
    if verdict is Verdict.ERROR or (strict and verdict is Verdict.WARNING):
        raise typer.Exit(1)


def _weights_dir() -> Path:
    """Return the directory whose disk usually holds weights; a daemon's user can have no home directory."""
    home = Path.home()
    return home if home.exists() else Path("/")


def _check_config() -> list[Finding]:
    findings = []
    for file in ConfigFile:
        path = system_file(file)
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            findings.append(ok(str(path), "skipped: only root and its service can read it"))
            continue
        try:
            config = read_any(file, path, os.environ)
            errors = (
                []
                if file is ConfigFile.MODELS
                else check_referenced_files(config, os.environ).errors
            )
        except ConfigError as failure:
            errors = failure.message.splitlines()
        if errors:
            hint = f"`cortex config check {path}` shows all errors"
            findings.append(error(str(path), errors[0], hint))
        else:
            findings.append(ok(str(path), "valid"))
    return findings


def _check_fleet(gateway: str | None) -> list[Finding]:
    try:
        where = target(gateway, os.environ)
        fleet = run(fetch_fleet(gateway))
    except CortexError as failure:
        lines = describe(failure, Colors()).splitlines()
        hint = lines[-1].removeprefix("hint: ") if len(lines) > 1 else ""
        return [error("gateway", failure.message, hint)]
    return [ok("gateway", where.url), *fleet_checks(fleet, __version__)]


def _check_access(gateway: str | None) -> list[Finding]:
    """Return who can use the gateway and its nodes; nothing if the gateway does not say, which is reported already."""

    async def ask() -> list[Finding]:
        async with connect(gateway) as client:
            config, keys, fleet = await client.config(), await client.keys(), await client.fleet()
        settings = {setting.key: setting.value for setting in config.gateway}
        return list(access_findings(settings, keys, fleet))

    try:
        return run(ask())
    except CortexError:
        return []


def _check_client(gateway: str | None, client: Client, model: str | None) -> list[Finding]:
    from cortex_cli.doctor.run import probe_client

    return run(probe_client(target(gateway, os.environ), client, model))
