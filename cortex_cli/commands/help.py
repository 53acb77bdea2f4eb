"""`cortex help`: help on commands, and topics that no single command covers."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer
import typer.main

from cortex_cli.error_exit import EXIT_CODES
from cortex_cli.options import single_command
from cortex_cli.root import COMMANDS
from cortex_cli.root import app as root
from cortex_cli.terminal import write_out

app = single_command()


class Topic(StrEnum):
    """Help topics."""

    EXIT_CODES = "exit-codes"
    ENVIRONMENT = "environment"
    CONFIG = "config"


ENVIRONMENT = {
    "CORTEX_GATEWAY_URL": "gateway that commands use: a URL or the name of a context",
    "CORTEX_API_KEY": "key for the gateway",
    "CORTEX_API_KEY_FILE": "file that contains the key; overrides a context's key_file",
    "CORTEX_SECTION__KEY": "setting of a daemon, such as CORTEX_GATEWAY__LISTEN; overrides its file",
    "CORTEX_DEBUG": "1 shows tracebacks, like --debug",
    "NO_COLOR, CLICOLOR, FORCE_COLOR, CLICOLOR_FORCE": "when to use color, like --color",
    "XDG_CONFIG_HOME": "directory of cortex/config.toml, which contains contexts; default ~/.config",
}

CONFIG = """\
Commands select the gateway in this order:
  --gateway URL|CONTEXT, CORTEX_GATEWAY_URL, the current context, http://127.0.0.1:8000
Contexts are stored in ~/.config/cortex/config.toml; `cortex context add` adds one.

Each daemon reads TOML files, given by options or found in /etc/cortex:
  cortex.toml  the gateway     models.toml  its models     neuron.toml  a GPU host
Environment variables override files: CORTEX_GATEWAY__LISTEN sets listen in [gateway],
CORTEX_NEURONS__0__NAME the name of the first [[neurons]] entry.

  cortex config init gateway            print a file with every setting, explained
  cortex config check FILE              check a file
  cortex config show gateway --origin   show the effective settings and where they come from
"""


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    names: Iterable[str] = (*Topic, *COMMANDS)
    if words := ctx.params.get("words"):
        command = typer.main.get_command(root).get_command(ctx, words[0])  # type: ignore[attr-defined]  # it is a group
        names = getattr(command, "commands", ()) if words[1:] == [] else ()
    return [name for name in names if name.startswith(incomplete)]


@app.command(
    epilog="Topics: exit-codes, environment, config. Examples: `cortex help exit-codes`, `cortex help models load`"
)
def help_topic(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC|COMMAND",
            help="A topic or a command; default: all commands",
            autocompletion=_complete,
        ),
    ] = None,
) -> None:
    """Show help on a command or a topic."""
    match words:
        case [Topic.EXIT_CODES]:
            text = "\n".join(f"{code:>4}  {meaning}" for code, meaning in EXIT_CODES.items())
        case [Topic.ENVIRONMENT]:
            text = "\n".join(f"{name}\n    {meaning}" for name, meaning in ENVIRONMENT.items())
        case [Topic.CONFIG]:
            text = CONFIG.rstrip()
        case _:
            typer.main.get_command(root).main(
                [*(words or ()), "--help"], prog_name="cortex", standalone_mode=False
            )
            return
    write_out(f"{text}\n")
