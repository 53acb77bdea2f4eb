"""The root of the command `cortex`: which commands there are, and how a failure ends the process.

A command's module is imported when that command runs, so that `cortex --help` and shell completion stay fast
and a laptop needs none of the servers' packages.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, Protocol, runtime_checkable

import typer
import typer.core
import typer.main

from cortex_cli.color import ColorWhen, paint_for
from cortex_common.errors import CortexError, nearest_names


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in the listing of `cortex --help`.

    Attributes:
        module: below `cortex_cli.commands`; its `app` is the command.
        panel: heading that it stands under.
        summary: first line of its help; a test holds the two together.
    """

    module: str
    panel: str
    summary: str


COMPLETE_VARIABLE = "_CORTEX_COMPLETE"
"""With it in the environment, the command completes words and does nothing else."""

COMMANDS = {
    "status": Entry("status", "Daily use", "Show the fleet on one screen"),
    "top": Entry("top", "Daily use", "Watch and operate the fleet on a full screen"),
    "ps": Entry("ps", "Daily use", "List what is loaded, and where"),
    "chat": Entry("chat", "Daily use", "Talk to a model"),
    "requests": Entry("requests", "Daily use", "List requests; end one"),
    "why": Entry("why", "Daily use", "Say why a request went where it went"),
    "models": Entry("models", "Fleet", "List, load, unload and protect models"),
    "nodes": Entry("nodes", "Fleet", "List hosts; keep work off them"),
    "gpus": Entry("gpus", "Fleet", "List devices and who uses their memory"),
    "plan": Entry("plan", "Fleet", "See what would be done, and why"),
    "defrag": Entry("defrag", "Fleet", "Move instances until free memory is in one piece"),
    "simulate": Entry(
        "simulate", "Fleet", "Judge eviction policies by running them against a trace"
    ),
    "bench": Entry("bench", "Fleet", "Measure how fast a model answers"),
    "events": Entry(
        "events", "Daily use", "Show what happened in the fleet, by whose wish and why"
    ),
    "logs": Entry("logs", "Daily use", "Show what the gateway, a node or an engine wrote"),
    "doctor": Entry(
        "doctor",
        "Running cortex",
        "Find what is wrong with the fleet, or for a kind of client",
    ),
    "env": Entry("env", "Running cortex", "Print the settings that point a client at the gateway"),
    "context": Entry("context", "Running cortex", "Choose between gateways"),
    "keys": Entry("keys", "Running cortex", "Make, list and revoke API keys"),
    "usage": Entry(
        "usage", "Running cortex", "Show requests and tokens by key, model and day (UTC)"
    ),
    "serve": Entry("serve", "Running cortex", "Run the gateway or a neuron"),
    "demo": Entry("demo", "Running cortex", "Run a whole fleet on this host, with a real engine"),
    "config": Entry("config", "Running cortex", "Check and explain configuration files"),
    "version": Entry(
        "version", "Running cortex", "Show versions of the command, the gateway and the nodes"
    ),
    "completion": Entry("completion", "More", "Print the completion script of a shell"),
    "help": Entry("help", "More", "Read about exit codes, environment or configuration"),
}


class Root(typer.core.TyperGroup):
    """The command group `cortex`, whose members are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - Typer's signature
        """Names in the order of the listing."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command.

        Raises:
            UsageError: there is none of that name.
        """
        if cmd_name not in COMMANDS:
            groups = ((name, self.get_command(ctx, name)) for name in COMMANDS)
            exact = [
                f"{name} {cmd_name}" for name, g in groups if cmd_name in getattr(g, "commands", ())
            ]
            meant = exact or nearest_names(cmd_name, COMMANDS)
            close = " or ".join(f"`cortex {name}`" for name in meant)
            ctx.fail(
                f"there is no command {cmd_name!r}" + (f"; did you mean {close}?" if close else "")
            )
        module = importlib.import_module(f"cortex_cli.commands.{COMMANDS[cmd_name].module}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer's signature
        """Write the listing from the table alone."""
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl(
                    [(name, e.summary) for name, e in COMMANDS.items() if e.panel == panel]
                )


app = typer.Typer(
    cls=Root,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Try it without a GPU: `cortex demo`. Exit codes: `cortex help exit-codes`.")
def root(
    *,
    color: Annotated[
        ColorWhen | None, typer.Option(help="When to use colour; default: on a terminal")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(
            "--gateway", "-g", metavar="URL|CONTEXT", help="Which gateway, for every command"
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from")] = False,  # noqa: ARG001 - see `main`
) -> None:
    """Run and operate a private fleet of GPU hosts as one inference service."""
    if color is not None:
        os.environ["CORTEX_COLOR"] = color.value
    if gateway is not None:
        os.environ["CORTEX_GATEWAY_URL"] = gateway


@runtime_checkable
class _UsageProblem(Protocol):
    """What Typer raises for a wrong command line; whose class it is depends on Typer's version."""

    exit_code: int

    def format_message(self) -> str:
        """What is wrong."""
        ...


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `cortex` and end the process with its exit code."""
    # What imports make is no garbage, and looking at it every 700 objects is a tenth of a start.
    gc.set_threshold(20_000, 20, 50)
    # Where click and rich are installed httpx brings its own command line along, for another tenth.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: it is not to be had
    if "--debug" in (sys.argv[1:] if args is None else args):
        # Before anything is parsed: an import may be what fails.
        os.environ["CORTEX_DEBUG"] = "1"
    command = typer.main.get_command(app)
    if COMPLETE_VARIABLE in os.environ:
        # The public way to have Typer's classes of shells registered.
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()
    try:
        code = command.main(args, prog_name="cortex", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has what it wanted; the interpreter must not complain at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except typer.Abort:
        code = 130
    except CortexError as error:
        if os.environ.get("CORTEX_DEBUG"):
            raise
        code = _report(error)
    except Exception as error:
        if isinstance(error, _UsageProblem):
            code = _explain_usage(error)
        elif os.environ.get("CORTEX_DEBUG"):
            raise
        else:
            code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    from cortex_cli.error_exit import describe, exit_code

    sys.stderr.write(describe(error, paint_for(sys.stderr, os.environ)) + "\n")
    return exit_code(error)


def _explain_usage(error: _UsageProblem) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        sys.stderr.write(context.get_help() + "\n")
        return error.exit_code
    paint = paint_for(sys.stderr, os.environ)
    # One line of plain words, whatever Typer and pydantic put around it.
    message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    message = message.removeprefix("Invalid value: ")
    sys.stderr.write(f"{paint.bad('error:')} {message[:1].lower()}{message[1:]}\n")
    if context is not None:
        sys.stderr.write(f"\n{paint.hint('hint:')} see `{context.command_path} --help`\n")
    return error.exit_code
