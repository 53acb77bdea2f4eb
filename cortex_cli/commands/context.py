"""`cortex context`: named gateways and their keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.client import ClientConfig, ContextEntry, client_config, client_config_path
from cortex_cli.options import command_group, output_format
from cortex_cli.output import write_items
from cortex_cli.render.formats import toml_key, toml_value
from cortex_cli.render.output_format import ListKind, OutputFormat
from cortex_cli.render.table import Column
from cortex_cli.terminal import write_out
from cortex_common.errors import NotFound, nearest_names

app = command_group("Switch between gateways")

Name = Annotated[str, typer.Argument(metavar="NAME")]
KnownName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.contexts)]


@dataclass(frozen=True, slots=True)
class Context:
    """A context as a row."""

    name: str
    current: bool
    gateway: str
    key_file: Path | None


CONTEXTS: ListKind[Context] = ListKind(
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
    output: options.Output = OutputFormat.TABLE,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_headers: options.NoHeaders = False,
) -> None:
    """List contexts; the current one is marked with a star."""
    config = client_config(os.environ)
    contexts = [
        Context(name, name == config.context, e.gateway, e.key_file)
        for name, e in config.contexts.items()
    ]
    selected = output_format(output, as_json=json, quiet=quiet)
    write_items(CONTEXTS, contexts, selected, headers=not no_headers)


@app.command("use", epilog="Example: `cortex context use prod`")
def use(name: KnownName) -> None:
    """Set the current context."""
    config = client_config(os.environ)
    _require_context(config, name)
    _write(config.model_copy(update={"context": name}))
    write_out(f"current context is {name}, {config.contexts[name].gateway}\n")


@app.command("add", epilog="Example: `cortex context add prod http://gateway.internal:8000`")
def add(
    name: Name,
    gateway: Annotated[str, typer.Argument(metavar="URL")],
    *,
    key_file: Annotated[Path | None, typer.Option(help="File that contains the key")] = None,
) -> None:
    """Add or replace a context; the first one becomes the current one."""
    if "://" not in gateway:
        raise typer.BadParameter(f"{gateway!r} is not a URL such as http://gateway.internal:8000")
    config = client_config(os.environ)
    entry = ContextEntry(gateway=gateway, key_file=key_file)
    contexts = {**config.contexts, name: entry}
    _write(config.model_copy(update={"context": config.context or name, "contexts": contexts}))
    write_out(f"added {name}, {entry.gateway}\n")


@app.command("rm", epilog="Example: `cortex context rm lab`")
def rm(name: KnownName) -> None:
    """Remove a context."""
    config = client_config(os.environ)
    _require_context(config, name)
    contexts = {k: v for k, v in config.contexts.items() if k != name}
    current = config.context if config.context != name else None
    _write(config.model_copy(update={"context": current, "contexts": contexts}))
    write_out(f"removed {name}\n")


def _require_context(config: ClientConfig, name: str) -> None:
    if name not in config.contexts:
        close = nearest_names(name, config.contexts)
        hint = f"did you mean {close[0]!r}?" if close else "`cortex context ls` lists contexts"
        raise NotFound(f"there is no context {name!r}", hints=(hint,))


def _write(config: ClientConfig) -> None:
    lines = [] if config.context is None else [f"context = {toml_value(config.context)}", ""]
    if config.keys:
        lines.append("[keys]")
        lines += [f"{toml_key(k)} = {toml_value(v)}" for k, v in config.keys.items()]
        lines.append("")
    for name, entry in config.contexts.items():
        lines += [f"[contexts.{toml_key(name)}]", f"gateway = {toml_value(entry.gateway)}"]
        if entry.key_file is not None:
            lines.append(f"key_file = {toml_value(str(entry.key_file))}")
        lines.append("")
    path = client_config_path(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Atomically: a partially written file would make all gateways unavailable.
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(lines), encoding="utf-8")
    temporary.replace(path)
