"""`cortex help`: what no single command's help tells."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer
import typer.main

from cortex_cli.error_exit import EXIT_CODES
from cortex_cli.options import verb

app = verb()


class Topic(StrEnum):
    """What there is to read."""

    EXIT_CODES = "exit-codes"
    ENVIRONMENT = "environment"
    CONFIG = "config"


ENVIRONMENT = {
    "CORTEX_GATEWAY_URL": "gateway that commands talk to: a URL or the name of a context",
    "CORTEX_API_KEY": "key for the gateway",
    "CORTEX_API_KEY_FILE": "file that holds the key; wins over a context's key_file",
    "CORTEX_SECTION__KEY": "a setting of a daemon, such as CORTEX_GATEWAY__LISTEN; wins over its file",
    "CORTEX_DEBUG": "1 shows where an error came from, like --debug",
    "NO_COLOR, CLICOLOR, FORCE_COLOR, CLICOLOR_FORCE": "whether to write colour, like --color",
    "XDG_CONFIG_HOME": "where cortex/config.toml with your contexts is looked for; default ~/.config",
}

CONFIG = """\
Commands find their gateway in this order:
  --gateway URL|CONTEXT, CORTEX_GATEWAY_URL, the current context, http://127.0.0.1:8000
Contexts are kept in ~/.config/cortex/config.toml; `cortex context add` writes them.

Daemons read one TOML file each, named by --config or found in /etc/cortex:
  cortex.toml  the gateway     models.toml  its models     neuron.toml  a GPU host
Environment variables win over files: CORTEX_GATEWAY__LISTEN sets listen of [gateway],
CORTEX_NEURONS__0__NAME the name of the first [[neurons]].

  cortex config init gateway            a file with every setting, explained
  cortex config check FILE              whether a file is right
  cortex config show gateway --origin   what is in force, and where each value came from
"""


@app.command(
    epilog="Topics: exit-codes, environment, config. Examples: `cortex help exit-codes`, `cortex help models load`"
)
def help_topic(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC|COMMAND",
            help="A topic, or a command; default: all commands",
            autocompletion=_known,
        ),
    ] = None,
) -> None:
    """Read about exit codes, environment or configuration."""
    match words:
        case [Topic.EXIT_CODES]:
            text = "\n".join(f"{code:>4}  {meaning}" for code, meaning in EXIT_CODES.items())
        case [Topic.ENVIRONMENT]:
            text = "\n".join(f"{name}\n    {meaning}" for name, meaning in ENVIRONMENT.items())
        case [Topic.CONFIG]:
            text = CONFIG.rstrip()
        case _:
            from cortex_cli.main import app as root

            typer.main.get_command(root).main(
                [*(words or ()), "--help"], prog_name="cortex", standalone_mode=False
            )
            return
    sys.stdout.write(f"{text}\n")


def _known(ctx: typer.Context, incomplete: str) -> list[str]:
    from cortex_cli.main import COMMANDS
    from cortex_cli.main import app as root

    found: Iterable[str] = (*Topic, *COMMANDS)
    if words := ctx.params.get("words"):
        command = typer.main.get_command(root).get_command(ctx, words[0])  # type: ignore[attr-defined]  # it is a group
        found = getattr(command, "commands", ()) if words[1:] == [] else ()
    return [word for word in found if word.startswith(incomplete)]
