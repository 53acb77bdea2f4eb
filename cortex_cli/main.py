"""Entry point of the command `cortex`: runs a command and maps its failure to a message and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, runtime_checkable

import typer
import typer.main

from cortex_cli.color import colors_for
from cortex_cli.root import COMPLETE_VARIABLE, app, register_completion
from cortex_cli.terminal import write_err
from cortex_common.errors import CortexError


@runtime_checkable
class _UsageError(Protocol):
    """Typer's error for an invalid command line; which class it has depends on Typer's version."""

    exit_code: int

    def format_message(self) -> str:
        """Return the message."""
        ...


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `cortex` and exit with its exit code."""
    # Imports create no garbage, and collecting every 700 objects takes a tenth of the start-up time.
    gc.set_threshold(20_000, 20, 50)
    # httpx imports its own command line if click and rich are installed, for another tenth.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: marks it as unavailable
    if "--debug" in (sys.argv[1:] if args is None else args):
        # Before parsing, because an import can fail.
        os.environ["CORTEX_DEBUG"] = "1"
    command = typer.main.get_command(app)
    if COMPLETE_VARIABLE in os.environ:
        register_completion()
    try:
        code = command.main(args, prog_name="cortex", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe; the interpreter must not fail in its final flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except typer.Abort:
        code = 130
    except CortexError as error:
        if os.environ.get("CORTEX_DEBUG"):
            raise
        code = _report(error)
    except Exception as error:
        if isinstance(error, _UsageError):
            code = _report_usage(error)
        elif os.environ.get("CORTEX_DEBUG"):
            raise
        else:
            code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    from cortex_cli.error_exit import describe, exit_code

    write_err(describe(error, colors_for(sys.stderr, os.environ)) + "\n")
    return exit_code(error)


def _report_usage(error: _UsageError) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        write_err(context.get_help() + "\n")
        return error.exit_code
    colors = colors_for(sys.stderr, os.environ)
    # One line without the prefixes that Typer and pydantic add.
    message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    message = message.removeprefix("Invalid value: ")
    write_err(f"{colors.bad('error:')} {message[:1].lower()}{message[1:]}\n")
    if context is not None:
        write_err(f"\n{colors.hint('hint:')} see `{context.command_path} --help`\n")
    return error.exit_code
