"""`cortex config`: what the files say, whether they are right, and where each value came from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import Done, Verb, each
from cortex_cli.client import connect, run
from cortex_cli.config_files import (
    NAMES,
    SYSTEM_DIR,
    File,
    json_schema,
    kind_of,
    read_any,
    read_catalogue,
    read_gateway,
    read_neuron,
    system_file,
    warnings,
)
from cortex_cli.options import chosen, noun
from cortex_cli.output import Output, as_text, say, stderr_paint, stdout_paint
from cortex_cli.referenced_files import Looked, look
from cortex_cli.render.settings import setting_kind
from cortex_cli.render.template import template
from cortex_common.config.provenance import Setting, list_settings
from cortex_common.errors import BadRequest, ConfigError, NotFound

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

app = noun("Check and explain configuration files")

Which = Annotated[File, typer.Argument(help="Which file")]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="The file; default: the one in /etc/cortex")
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
        File | None, typer.Option(help="What the files configure, if names do not tell")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors")] = False,
) -> None:
    """Check files; ends with 1 when one is wrong."""
    paths = files or [p for p in map(system_file, File) if p is not None]
    if not paths:
        raise NotFound(
            f"there are no configuration files in {SYSTEM_DIR}",
            hints=("name the files, or write one with `cortex config init gateway > cortex.toml`",),
        )
    looked = [_tell(path, _check(path, kind, paths)) for path in paths]
    if any(found.wrong or (strict and found.doubtful) for found in looked):
        raise typer.Exit(1)


def _tell(path: Path, found: Looked) -> Looked:
    paint = stderr_paint()
    for line in found.wrong:
        say(f"{paint.bad('error:')} {line}")
    for hint in found.hints:
        say(f"{paint.hint('hint:')} {hint}")
    for line in found.doubtful:
        say(f"{paint.warn('warning:')} {path}: {line}")
    for line in found.unseen:
        say(f"{paint.hint('note:')} {line}")
    if not found.wrong:
        sys.stdout.write(f"{path}: ok\n")
    return found


def _check(path: Path, kind: File | None, checked: list[Path]) -> Looked:
    try:
        return _look(path, kind or kind_of(path), checked)
    except ConfigError as failed:
        return Looked(wrong=failed.message.splitlines(), hints=failed.hints)


def _look(path: Path, file: File, checked: list[Path]) -> Looked:
    if file is File.MODELS:
        read_any(file, path, os.environ)
        return Looked()
    if file is File.NEURON:
        return look(read_neuron(path, os.environ), os.environ)
    gateway = read_gateway(path, os.environ)
    found = look(gateway, os.environ)
    try:
        catalogue = read_catalogue(None, gateway, os.environ)
    except ConfigError:
        models = path.parent / gateway.value.gateway.models
        if not any(models.exists() and models.samefile(p) for p in checked if p.exists()):
            raise
        return found  # it is told of that file
    found.doubtful += warnings(gateway.value, catalogue.value)
    return found


@app.command("show", epilog="Example: `cortex config show gateway --origin`")
def show(
    which: Which = File.GATEWAY,
    *,
    file: FileOption = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Also where each value came from")
    ] = False,
    running: Annotated[
        bool, typer.Option("--running", help="What a running gateway uses, not what files say")
    ] = False,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Show the settings in force: file, environment and defaults; secrets are hidden."""
    found = (
        run(_running(gateway, which))
        if running
        else list_settings(read_any(which, file, os.environ))
    )
    form = chosen(output, as_json=json, quiet=False)
    text = as_text(setting_kind(origin=origin), found, form, paint=stdout_paint())
    sys.stdout.write(f"{text}\n")


async def _running(gateway: str | None, which: File) -> tuple[Setting, ...]:
    if which is File.NEURON:
        raise BadRequest("a gateway does not know the settings of its neurons")
    async with connect(gateway) as client:
        found = await client.config()
    return found.gateway if which is File.GATEWAY else found.models


@app.command("schema", epilog="Example: `cortex config schema models > models.schema.json`")
def schema(which: Which) -> None:
    """Print a file's JSON schema, for editors."""
    sys.stdout.write(json_schema(which))


@app.command("init", epilog="Example: `cortex config init gateway > cortex.toml`")
def init(which: Which) -> None:
    """Print a file with every setting, explained and commented out."""
    sys.stdout.write(template(which))


@app.command("reload", epilog="Example: `cortex config reload`")
def reload(
    *,
    gateway: options.Gateway = None,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
) -> None:
    """Have a running gateway read its files again; a wrong one changes nothing."""

    async def one(client: OperatorClient, _name: str) -> Done:
        done = await client.reload()
        if done.restart:
            say(f"{', '.join(done.restart)}: in force once the gateway is started anew")
        nothing = "nothing since the gateway last read them, which it does when they change"
        return Done(f"reloaded; changed: {', '.join(done.changed) or nothing}", done)

    form = chosen(output, as_json=json, quiet=False)
    run(each(gateway, ["gateway"], Verb("reload", form), one))


@app.command("path")
def path() -> None:
    """Print which files are read when none is named."""
    for file in File:
        found = system_file(file)
        state = "" if found else " (not there: defaults)"
        sys.stdout.write(f"{file.value}  {SYSTEM_DIR / NAMES[file]}{state}\n")
