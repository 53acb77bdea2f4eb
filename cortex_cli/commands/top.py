"""`cortex top`: the dashboard."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import parse_seconds
from cortex_cli.client import client_config, fetch_fleet, run, target
from cortex_cli.options import single_command
from cortex_cli.output import stdout_colors
from cortex_cli.render.status import status_text
from cortex_cli.terminal import write_err, write_out
from cortex_common.errors import NotSupported
from cortex_common.schema.fleet import FleetSnapshot

app = single_command()


@app.command(
    epilog="Examples: `cortex top`, `cortex top --read-only`, `cortex top --replay session.jsonl`"
)
def top(
    *,
    interval: Annotated[str, typer.Option(help="Time between two drawings, such as 1s")] = "1s",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse operations on the fleet")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the state once and exit")] = False,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="Use ASCII characters only")] = False,
    theme: Annotated[
        str, typer.Option(help="cortex-dark, cortex-light, or a theme of Textual")
    ] = "cortex-dark",
    record: Annotated[Path | None, typer.Option(help="Record the session to this file")] = None,
    replay: Annotated[Path | None, typer.Option(help="Replay a recorded session")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the dashboard to browsers")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on with --web")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on with --web")] = 8080,
    public_url: Annotated[
        str | None, typer.Option(help="URL of a proxy in front of it, with --web")
    ] = None,
    gateway: options.Gateway = None,
) -> None:
    """Monitor and operate the fleet on a full screen."""
    if web:
        arguments = ["--gateway", gateway] if gateway else []
        arguments += ["--read-only"] if read_only else []
        arguments += ["--interval", interval, "--theme", theme]
        arguments += ["--replay", str(replay)] if replay else []
        _serve(host, port, arguments, target(gateway, os.environ).key, public_url)
        return
    source_name = str(replay) if replay else target(gateway, os.environ).url
    if once or not _has_screen():
        snapshot = _single_snapshot(gateway, replay)
        write_out(f"{status_text(snapshot, source_name, stdout_colors())}\n")
        return
    try:
        from cortex_cli.tui.app import Top
    except ModuleNotFoundError as error:
        raise NotSupported(
            f"the dashboard is not installed: {error.name} is missing",
            hints=("pip install 'cortex-gpu[tui]'",),
        ) from error
    from cortex_cli.tui.keys import validate_keymap
    from cortex_cli.tui.operations import GatewayOperator
    from cortex_cli.tui.options import ScreenOptions
    from cortex_cli.tui.source import GatewaySource, ReplaySource, Source

    screen_options = ScreenOptions(
        source=source_name,
        interval_s=parse_seconds(interval, "--interval"),
        read_only=read_only or replay is not None,
        ascii_only=ascii_only,
        theme=theme,
        live=replay is None,
        keys=validate_keymap(client_config(os.environ).keys),
    )
    with ExitStack() as stack:
        file = stack.enter_context(record.open("w", encoding="utf-8")) if record else None
        source: Source = (
            ReplaySource(replay) if replay else GatewaySource(gateway, file, screen_options.pause_s)
        )
        Top(source, GatewayOperator(gateway), screen_options).run()
    if record:
        write_err(f"recorded to {record}; show it with `cortex top --replay {record}`\n")


def _has_screen() -> bool:
    """Return whether there is a terminal, or the browser that textual-serve connects to."""
    return "TEXTUAL_DRIVER" in os.environ or (sys.stdout.isatty() and sys.stdin.isatty())


def _serve(
    host: str, port: int, arguments: list[str], key: str | None, public_url: str | None
) -> None:
    try:
        from cortex_cli.tui.web import serve
    except ModuleNotFoundError as error:
        raise NotSupported(
            f"the web dashboard is not installed: {error.name} is missing",
            hints=("pip install textual-serve",),
        ) from error
    serve(host, port, arguments, key, public_url)


def _single_snapshot(gateway: str | None, replay: Path | None) -> FleetSnapshot:
    if replay is None:
        return run(fetch_fleet(gateway))
    from cortex_cli.tui.source import read_recording

    return [update for update in read_recording(replay) if isinstance(update, FleetSnapshot)][-1]
