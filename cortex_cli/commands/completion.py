"""`cortex completion`: the script that teaches a shell our words."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer
import typer.main

from cortex_cli.options import verb

app = verb()


class Shell(StrEnum):
    """Shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command(
    epilog="Example: `cortex completion bash > ~/.local/share/bash-completion/completions/cortex`"
)
def completion(shell: Annotated[Shell, typer.Argument(help="Which shell")]) -> None:
    """Print the completion script of a shell."""
    from cortex_cli.main import COMPLETE_VARIABLE, main

    # Typer prints the script for whoever starts the command with this variable.
    os.environ[COMPLETE_VARIABLE] = f"source_{shell}"
    main([])
