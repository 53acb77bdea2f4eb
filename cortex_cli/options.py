"""Options that several commands share, and constructors of commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core
from typing_extensions import override

from cortex_cli import completion
from cortex_cli.render.output_format import OutputFormat

Gateway = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        "-g",
        metavar="URL|CONTEXT",
        help="Gateway to use; default: CORTEX_GATEWAY_URL, the current context, or http://127.0.0.1:8000",
    ),
]
Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format")]
Json = Annotated[bool, typer.Option("--json", help="Short for -o json")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print names only; short for -o name")]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Omit the table header")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show changes until interrupted")]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Names, aliases, patterns such as 'qwen*', or - for stdin",
        autocompletion=completion.models,
    ),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Name or alias", autocompletion=completion.models),
]
Nodes = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE",
        help="Names, patterns such as 'gpu*', or - for stdin",
        autocompletion=completion.nodes,
    ),
]
Node = Annotated[str, typer.Argument(metavar="NODE", autocompletion=completion.nodes)]
OnNode = Annotated[
    str | None,
    typer.Option(
        "--node", metavar="NODE", help="Only on this node", autocompletion=completion.nodes
    ),
]
OnDevices = Annotated[
    list[str] | None,
    typer.Option("--gpu", metavar="NODE/INDEX", help="Only on this device; repeatable"),
]
Replica = Annotated[
    bool, typer.Option("--replica", help="Load another instance even if one is ready")
]
ForModel = Annotated[
    str | None, typer.Option("--for", metavar="MODEL", help="Make a block that fits this model")
]
CrossNode = Annotated[bool, typer.Option("--cross-node", help="Allow moves to other nodes")]
DrainTimeout = Annotated[
    str, typer.Option(help="How long to wait for requests in flight, such as 90s")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan without executing it")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Follow new lines")]


def output_format(output: OutputFormat, *, as_json: bool, quiet: bool = False) -> OutputFormat:
    """Return the format selected by -o, --json and --quiet."""
    if as_json:
        return OutputFormat.JSON
    return OutputFormat.NAME if quiet else output


class _CommandGroup(typer.core.TyperGroup):
    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # Typer truncates the first line of each help text.
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, (self.commands[name].help or "").strip().partition("\n")[0].rstrip("."))
                    for name in self.list_commands(ctx)
                ]
            )


def command_group(summary: str) -> typer.Typer:
    """Return a command with subcommands, such as `cortex models`."""
    app = typer.Typer(
        cls=_CommandGroup,
        help=summary,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    # A callback keeps it a group even if it has a single subcommand.
    app.callback()(_no_callback)
    return app


def _no_callback() -> None:
    return None


def single_command() -> typer.Typer:
    """Return a command without subcommands, such as `cortex ps`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)
