"""The root command `cortex`: the table of its commands, which are imported when they are used.

`cortex --help` and shell completion therefore stay fast, and a laptop needs none of the servers' packages.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.core
import typer.main
from typing_extensions import override

from cortex_cli.color import ColorWhen
from cortex_common.errors import nearest_names


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command in the output of `cortex --help`.

    Attributes:
        module: module in `cortex_cli.commands` whose `app` is the command.
        panel: heading that the command is listed under.
        summary: first line of its help text; a test keeps the two equal.
    """

    module: str
    panel: str
    summary: str


_DAILY, _FLEET, _ADMIN, _MORE = "Daily use", "Fleet", "Administration", "More"

COMMANDS = {
    "status": CommandEntry("status", _DAILY, "Show the fleet on one screen"),
    "top": CommandEntry("top", _DAILY, "Monitor and operate the fleet on a full screen"),
    "ps": CommandEntry("ps", _DAILY, "List loaded instances"),
    "chat": CommandEntry("chat", _DAILY, "Chat with a model"),
    "requests": CommandEntry("requests", _DAILY, "List and cancel requests"),
    "why": CommandEntry("why", _DAILY, "Explain how a request was routed"),
    "models": CommandEntry("models", _FLEET, "List, load, unload and pin models"),
    "nodes": CommandEntry("nodes", _FLEET, "List, cordon and drain nodes"),
    "gpus": CommandEntry("gpus", _FLEET, "List devices and their memory"),
    "plan": CommandEntry("plan", _FLEET, "Show what an operation would do, and why"),
    "defrag": CommandEntry("defrag", _FLEET, "Move instances to consolidate free memory"),
    "simulate": CommandEntry("simulate", _FLEET, "Compare eviction policies on a trace"),
    "bench": CommandEntry("bench", _FLEET, "Measure latency and throughput of a model"),
    "events": CommandEntry("events", _DAILY, "Show loads, evictions and other events of the fleet"),
    "logs": CommandEntry("logs", _DAILY, "Show the log of the gateway, a node or an engine"),
    "doctor": CommandEntry("doctor", _ADMIN, "Diagnose the fleet, or support for a client"),
    "env": CommandEntry("env", _ADMIN, "Print settings that point a client at the gateway"),
    "context": CommandEntry("context", _ADMIN, "Switch between gateways"),
    "keys": CommandEntry("keys", _ADMIN, "Create, list and revoke API keys"),
    "usage": CommandEntry("usage", _ADMIN, "Show requests and tokens by key, model and day (UTC)"),
    "serve": CommandEntry("serve", _ADMIN, "Run the gateway or a neuron"),
    "demo": CommandEntry("demo", _ADMIN, "Run a complete fleet on this host, with a real engine"),
    "config": CommandEntry("config", _ADMIN, "Check and explain configuration files"),
    "version": CommandEntry("version", _ADMIN, "Show versions of command, gateway and nodes"),
    "completion": CommandEntry("completion", _MORE, "Print the completion script of a shell"),
    "help": CommandEntry("help", _MORE, "Show help on a command or a topic"),
}


COMMANDS_OF_OTHERS = {
    "deploy": "models load",
    "launch": "serve",
    "list": "models ls",
    "ls": "models ls",
    "pull": "models load",
    "rm": "models unload",
    "run": "chat",
    "show": "models describe",
    "start": "models load",
    "stop": "models unload",
}
"""Commands of similar programs (ollama, docker, llama-swap), with the command of cortex that does the same."""


class RootGroup(typer.core.TyperGroup):
    """The command group `cortex`, which imports its commands on use."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            ctx.fail(f"unknown command {cmd_name!r}{self._suggestion(ctx, cmd_name)}")
        module = importlib.import_module(f"cortex_cli.commands.{COMMANDS[cmd_name].module}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def _suggestion(self, ctx: Any, name: str) -> str:
        if name in COMMANDS_OF_OTHERS:
            return f"; did you mean `cortex {COMMANDS_OF_OTHERS[name]}`?"
        groups = ((entry, self.get_command(ctx, entry)) for entry in COMMANDS)
        subcommands = [
            f"{e} {name}" for e, group in groups if name in getattr(group, "commands", ())
        ]
        close = subcommands or nearest_names(name, COMMANDS)
        return f"; did you mean {' or '.join(f'`cortex {c}`' for c in close)}?" if close else ""

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # From the table alone, so that no command is imported.
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl(
                    [(name, e.summary) for name, e in COMMANDS.items() if e.panel == panel]
                )


app = typer.Typer(
    cls=RootGroup,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from cortex_common import __version__

        typer.echo(f"cortex {__version__}")
        raise typer.Exit


@app.callback(epilog="Try it without a GPU: `cortex demo`. Exit codes: `cortex help exit-codes`.")
def root(
    *,
    color: Annotated[
        ColorWhen | None, typer.Option(help="When to use color; default: on a terminal")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(
            "--gateway", "-g", metavar="URL|CONTEXT", help="Gateway to use, for every command"
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - `_print_version` exits
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit"
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors")] = False,  # noqa: ARG001 - see `main`
) -> None:
    """Run and operate a private fleet of GPU hosts as one inference service."""
    if color is not None:
        os.environ["CORTEX_COLOR"] = color.value
    if gateway is not None:
        os.environ["CORTEX_GATEWAY_URL"] = gateway


COMPLETE_VARIABLE = "_CORTEX_COMPLETE"
"""Environment variable that makes the command print completions instead of running."""


def register_completion() -> None:
    """Register Typer's completion classes of all shells."""
    # The only public function that has this effect.
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
