"""`cortex context`: the gateways that an operator works with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import ClientConfig, ContextEntry, client_config, client_config_path
from cortex_cli.options import chosen, noun
from cortex_cli.output import Kind, Output, as_text, say, stdout_paint
from cortex_cli.render.formats import toml_key, toml_value
from cortex_cli.render.table import Column
from cortex_common.errors import NotFound, nearest_names

app = noun("Choose between gateways")

Name = Annotated[str, typer.Argument(metavar="NAME")]


@dataclass(frozen=True, slots=True)
class Context:
    """A context as it is listed."""

    name: str
    current: bool
    gateway: str
    key_file: Path | None


CONTEXTS: Kind[Context] = Kind(
    "ContextList",
    (
        Column("NAME", lambda c: c.name),
        Column("CURRENT", lambda c: "*" if c.current else ""),
        Column("GATEWAY", lambda c: c.gateway),
        Column("KEY FILE", lambda c: str(c.key_file or "")),
    ),
    lambda c: c.name,
    "no contexts; add one with `cortex context add NAME URL`",
)


@app.command("ls")
def ls(
    *,
    output: options.OutputOption = Output.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """List contexts; the current one has a star."""
    config = client_config(os.environ)
    found = [
        Context(name, name == config.context, e.gateway, e.key_file)
        for name, e in config.contexts.items()
    ]
    form = chosen(output, as_json=json, quiet=quiet)
    text = as_text(CONTEXTS, found, form, paint=stdout_paint(), headers=not no_headers)
    if text:
        sys.stdout.write(f"{text}\n")
    else:
        say(CONTEXTS.nothing)


@app.command("use", epilog="Example: `cortex context use prod`")
def use(name: Name) -> None:
    """Make a context the current one."""
    config = client_config(os.environ)
    _known(config, name)
    _write(config.model_copy(update={"context": name}))
    sys.stdout.write(f"commands now talk to {name}, {config.contexts[name].gateway}\n")


@app.command("add", epilog="Example: `cortex context add prod http://gateway.internal:8000`")
def add(
    name: Name,
    gateway: Annotated[str, typer.Argument(metavar="URL")],
    *,
    key_file: Annotated[Path | None, typer.Option(help="File that holds the key")] = None,
) -> None:
    """Add or change a context; the first one becomes the current one."""
    if "://" not in gateway:
        raise typer.BadParameter(f"{gateway!r} is not a URL like http://gateway.internal:8000")
    config = client_config(os.environ)
    entry = ContextEntry(gateway=gateway, key_file=key_file)
    _write(ClientConfig(context=config.context or name, contexts={**config.contexts, name: entry}))
    sys.stdout.write(f"added {name}, {entry.gateway}\n")


@app.command("rm", epilog="Example: `cortex context rm lab`")
def rm(name: Name) -> None:
    """Forget a context."""
    config = client_config(os.environ)
    _known(config, name)
    left = {k: v for k, v in config.contexts.items() if k != name}
    current = config.context if config.context != name else None
    _write(ClientConfig(context=current, contexts=left))
    sys.stdout.write(f"forgot {name}\n")


def _known(config: ClientConfig, name: str) -> None:
    if name not in config.contexts:
        close = nearest_names(name, config.contexts)
        hint = f"did you mean {close[0]!r}?" if close else "`cortex context ls` lists them"
        raise NotFound(f"there is no context {name!r}", hints=(hint,))


def _write(config: ClientConfig) -> None:
    lines = [] if config.context is None else [f"context = {toml_value(config.context)}", ""]
    for name, entry in config.contexts.items():
        lines += [f"[contexts.{toml_key(name)}]", f"gateway = {toml_value(entry.gateway)}"]
        if entry.key_file is not None:
            lines.append(f"key_file = {toml_value(str(entry.key_file))}")
        lines.append("")
    path = client_config_path(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a half-written file would lock its owner out of all gateways.
    written = path.with_suffix(".new")
    written.write_text("\n".join(lines), encoding="utf-8")
    written.replace(path)
