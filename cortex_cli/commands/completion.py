"""`cortex completion`: print the completion script of a shell."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer
import typer.main

from cortex_cli.options import single_command
from cortex_cli.root import COMPLETE_VARIABLE, register_completion
from cortex_cli.root import app as root

app = single_command()


class Shell(StrEnum):
    """Supported shells."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command(
    epilog="Example: `cortex completion bash > ~/.local/share/bash-completion/completions/cortex`"
)
def completion(shell: Annotated[Shell, typer.Argument(help="Shell")]) -> None:
    """Print the completion script of a shell."""
    # Typer prints the script when the command is started with this variable.
    os.environ[COMPLETE_VARIABLE] = f"source_{shell}"
    register_completion()
    typer.main.get_command(root).main([], prog_name="cortex", standalone_mode=False)
