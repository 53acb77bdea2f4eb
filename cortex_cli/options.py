"""Options that several commands share, and the two shapes of a command."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from cortex_cli import completion
from cortex_cli.output import Output

Gateway = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        "-g",
        metavar="URL|CONTEXT",
        help="Which gateway; default: CORTEX_GATEWAY_URL, the current context, or http://127.0.0.1:8000",
    ),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="Format of the data on stdout")
]
Json = Annotated[bool, typer.Option("--json", help="Short for -o json")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Names only, short for -o name")]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Leave the table's first line out")]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on showing changes until interrupted")
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Names, aliases, patterns like 'qwen*', or - for stdin",
        autocompletion=completion.models,
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=completion.models)]
OnNode = Annotated[
    str | None,
    typer.Option("--node", metavar="NODE", help="Only there", autocompletion=completion.nodes),
]
OnDevices = Annotated[
    list[str] | None,
    typer.Option("--gpu", metavar="NODE/INDEX", help="On this device; repeatable"),
]
RoomFor = Annotated[str | None, typer.Option("--for", metavar="MODEL", help="Make room for it")]
CrossNode = Annotated[bool, typer.Option("--cross-node", help="Allow moves to other nodes")]
DrainTimeout = Annotated[
    str,
    typer.Option(help="How long to wait for requests under way before giving up, like 90s"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


def chosen(output: Output, *, as_json: bool, quiet: bool) -> Output:
    """The format that -o and its two short forms ask for."""
    if as_json:
        return Output.JSON
    return Output.NAME if quiet else output


class _Noun(typer.core.TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands with the whole first line of their help, which Typer would cut off."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, (self.commands[name].help or "").strip().partition("\n")[0].rstrip("."))
                    for name in self.list_commands(ctx)
                ]
            )


def noun(summary: str) -> typer.Typer:
    """A command with commands below it, like `cortex models`."""
    app = typer.Typer(
        cls=_Noun,
        help=summary,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    # A callback keeps it a group while it has a single command.
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    return None


def verb() -> typer.Typer:
    """A command of its own, like `cortex ps`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)
