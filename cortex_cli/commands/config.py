"""`cortex config`: check and explain configuration files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import BulkAction, Outcome, run_bulk
from cortex_cli.client import connect, run
from cortex_cli.config_files import (
    NAMES,
    SYSTEM_DIR,
    ConfigFile,
    detect_kind,
    find_warnings,
    json_schema,
    read_any,
    read_catalogue,
    read_gateway,
    read_neuron,
    system_file,
)
from cortex_cli.options import command_group, output_format
from cortex_cli.output import notify, stderr_colors, write_items
from cortex_cli.referenced_files import FileReport, check_referenced_files
from cortex_cli.render.output_format import OutputFormat
from cortex_cli.render.settings import setting_kind
from cortex_cli.render.template import template
from cortex_cli.terminal import write_out
from cortex_common.config.provenance import Setting, list_settings
from cortex_common.errors import BadRequest, ConfigError, NotFound
from cortex_common.schema.operations import RELOAD

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = command_group("Check and explain configuration files")

Which = Annotated[ConfigFile, typer.Argument(help="Which file")]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Path of the file; default: in /etc/cortex")
]


@app.command(
    "check", epilog="Examples: `cortex config check`, `cortex config check cortex.toml --strict`"
)
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Default: those in /etc/cortex")
    ] = None,
    *,
    kind: Annotated[
        ConfigFile | None, typer.Option(help="What the files configure, if it can't be detected")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors")] = False,
) -> None:
    """Check files; exits with 1 if one is invalid."""
    paths = files or [p for p in map(system_file, ConfigFile) if p is not None]
    if not paths:
        raise NotFound(
            f"there are no configuration files in {SYSTEM_DIR}",
            hints=("name the files, or write one with `cortex config init gateway > cortex.toml`",),
        )
    reports = [_check(path, kind, paths) for path in paths]
    for path, report in zip(paths, reports, strict=True):
        _write_report(path, report)
    if any(report.errors or (strict and report.warnings) for report in reports):
        raise typer.Exit(1)


def _write_report(path: Path, report: FileReport) -> None:
    colors = stderr_colors()
    for line in report.errors:
        notify(f"{colors.bad('error:')} {line}")
    for hint in report.hints:
        notify(f"{colors.hint('hint:')} {hint}")
    for line in report.warnings:
        notify(f"{colors.warn('warning:')} {path}: {line}")
    for line in report.skipped:
        notify(f"{colors.hint('note:')} {line}")
    if not report.errors:
        write_out(f"{path}: ok\n")


def _check(path: Path, kind: ConfigFile | None, checked: list[Path]) -> FileReport:
    try:
        return _check_contents(path, kind or detect_kind(path), checked)
    except ConfigError as error:
        return FileReport(errors=error.message.splitlines(), hints=error.hints)


def _check_contents(path: Path, file: ConfigFile, checked: list[Path]) -> FileReport:
    if file is ConfigFile.MODELS:
        read_any(file, path, os.environ)
        return FileReport()
    if file is ConfigFile.NEURON:
        return check_referenced_files(read_neuron(path, os.environ), os.environ)
    gateway = read_gateway(path, os.environ)
    report = check_referenced_files(gateway, os.environ)
    try:
        catalogue = read_catalogue(None, gateway, os.environ)
    except ConfigError:
        models = path.parent / gateway.value.gateway.models
        if not any(models.exists() and models.samefile(p) for p in checked if p.exists()):
            raise
        return report  # The error is part of that file's report.
    report.warnings += find_warnings(gateway.value, catalogue.value)
    return report


@app.command("show", epilog="Example: `cortex config show gateway --origin`")
def show(
    which: Which = ConfigFile.GATEWAY,
    *,
    file: FileOption = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Show where each value comes from")
    ] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Show the settings of the running gateway")
    ] = False,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Show the effective settings from file, environment and defaults; secrets are redacted."""
    settings = (
        run(_running(gateway, which))
        if running
        else list_settings(read_any(which, file, os.environ))
    )
    write_items(setting_kind(origin=origin), settings, output_format(output, as_json=json))


async def _running(gateway: str | None, which: ConfigFile) -> tuple[Setting, ...]:
    if which is ConfigFile.NEURON:
        raise BadRequest("the gateway does not report the settings of neurons")
    async with connect(gateway) as client:
        config = await client.config()
    return config.gateway if which is ConfigFile.GATEWAY else config.models


@app.command("schema", epilog="Example: `cortex config schema models > models.schema.json`")
def schema(which: Which) -> None:
    """Print the JSON schema of a file, for editors."""
    write_out(json_schema(which))


@app.command("init", epilog="Example: `cortex config init gateway > cortex.toml`")
def init(which: Which) -> None:
    """Print a file with every setting, explained and commented out."""
    write_out(template(which))


@app.command(RELOAD.name, help=RELOAD.help, epilog="Example: `cortex config reload`")
def reload(
    *,
    gateway: options.Gateway = None,
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
) -> None:
    """Reload the configuration; see `RELOAD`."""

    async def reload_gateway(client: OperatorClient, _name: str) -> Outcome:
        result = await client.reload()
        if result.restart:
            notify(f"{', '.join(result.restart)}: effective after a restart of the gateway")
        nothing = "nothing; the gateway also reloads changed files by itself"
        changed = ", ".join(result.changed) or nothing
        return Outcome(f"{RELOAD.past}; changed: {changed}", result)

    action = BulkAction(RELOAD.name, output_format(output, as_json=json))
    run(run_bulk(gateway, ["gateway"], action, reload_gateway))


@app.command("path")
def path() -> None:
    """Print the paths of the files that are read by default."""
    for file in ConfigFile:
        suffix = "" if system_file(file) else " (does not exist: defaults)"
        write_out(f"{file.value}  {SYSTEM_DIR / NAMES[file]}{suffix}\n")
