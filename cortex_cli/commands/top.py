"""`cortex top`: the dashboard."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.bulk import seconds_of
from cortex_cli.client import client_config, connect, run, target
from cortex_cli.options import verb
from cortex_cli.output import say, stdout_paint
from cortex_cli.render.status import status
from cortex_common.errors import NotSupported
from cortex_common.schema.fleet import FleetSnapshot

app = verb()


@app.command(
    epilog="Examples: `cortex top`, `cortex top --read-only`, `cortex top --replay session.jsonl`"
)
def top(
    *,
    interval: Annotated[str, typer.Option(help="How often to draw, like 1s")] = "1s",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse what changes the fleet")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the state and end")] = False,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="Draw with ASCII alone")] = False,
    theme: Annotated[
        str, typer.Option(help="cortex-dark, cortex-light, or one of Textual's")
    ] = "cortex-dark",
    record: Annotated[Path | None, typer.Option(help="Write the session to this file")] = None,
    replay: Annotated[Path | None, typer.Option(help="Show a recorded session")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve it to browsers")] = False,
    host: Annotated[str, typer.Option(help="With --web: address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --web: port to listen on")] = 8080,
    gateway: options.Gateway = None,
) -> None:
    """Watch and operate the fleet on a full screen."""
    where = str(replay) if replay else target(gateway, os.environ).url
    if web:
        arguments = ["--gateway", gateway] if gateway else []
        arguments += ["--read-only"] if read_only else []
        arguments += ["--interval", interval, "--theme", theme]
        arguments += ["--replay", str(replay)] if replay else []
        _serve(host, port, arguments, target(gateway, os.environ).key)
        return
    if once or not _is_screen():
        sys.stdout.write(f"{status(_one(gateway, replay), where, stdout_paint())}\n")
        return
    seconds = seconds_of(interval, "--interval")
    try:
        from cortex_cli.tui.app import Top
        from cortex_cli.tui.options import ScreenOptions
    except ModuleNotFoundError as missing:
        raise NotSupported(
            f"the terminal UI is not installed here: {missing.name} is missing",
            hints=("pip install 'cortex-gpu[tui]'",),
        ) from missing
    from cortex_cli.tui.keys import validate_keymap
    from cortex_cli.tui.operations import GatewayOperator
    from cortex_cli.tui.source import GatewaySource, ReplaySource, Source

    look = ScreenOptions(
        source=where,
        interval_s=seconds,
        read_only=read_only or replay is not None,
        ascii_only=ascii_only,
        theme=theme,
        live=replay is None,
        keys=validate_keymap(client_config(os.environ).keys),
    )
    with ExitStack() as stack:
        file = stack.enter_context(record.open("w", encoding="utf-8")) if record else None
        source: Source = (
            ReplaySource(replay) if replay else GatewaySource(gateway, file, look.pause_s)
        )
        Top(source, GatewayOperator(gateway), look).run()
    if record:
        say(f"recorded in {record}; show it with `cortex top --replay {record}`")


def _is_screen() -> bool:
    """Whether there is a terminal, or the browser that textual-serve stands in for."""
    return "TEXTUAL_DRIVER" in os.environ or (sys.stdout.isatty() and sys.stdin.isatty())


def _serve(host: str, port: int, arguments: list[str], key: str | None) -> None:
    try:
        from cortex_cli.tui.web import serve
    except ModuleNotFoundError as missing:
        raise NotSupported(
            f"the page is not installed here: {missing.name} is missing",
            hints=("pip install textual-serve",),
        ) from missing
    say(
        f"http://{host}:{port} until interrupted"
        + ("" if key is None else "; the password is the operator key")
    )
    serve(host, port, arguments, key)


def _one(gateway: str | None, replay: Path | None) -> FleetSnapshot:
    if replay is None:
        return run(_fleet(gateway))
    from cortex_cli.tui.source import read_recording

    return [seen for seen in read_recording(replay) if isinstance(seen, FleetSnapshot)][-1]


async def _fleet(gateway: str | None) -> FleetSnapshot:
    async with connect(gateway) as client:
        return await client.fleet()
