"""`cortex demo`: a whole fleet on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cortex_cli.client import run
from cortex_cli.options import verb
from cortex_common.errors import NotSupported

app = verb()

_NEEDED = ("fastapi", "gguf", "mistralrs", "psutil", "uvicorn")


@app.command(
    epilog="Examples: `cortex demo`, `cortex demo --once`, `cortex demo --model qwen.gguf`"
)
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End after the first answer")] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", exists=True, dir_okay=False, help="Your GGUF file in place of tiny models"
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the gateway, if it is free")] = 8000,
    view: Annotated[bool, typer.Option(help="Show the fleet live, on a terminal")] = True,
) -> None:
    """Run a whole fleet on this host, with a real engine."""
    _require_parts()
    from cortex_cli.demo.demo import Wish
    from cortex_cli.demo.demo import demo as play
    from cortex_cli.demo.files import Ports

    code = run(play(Wish(once=once, model=model, ports=Ports(api=port), view=view)))
    raise typer.Exit(code)


def _require_parts() -> None:
    from importlib.util import find_spec

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NotSupported(
            f"the demo runs every part of cortex, and {', '.join(missing)} is not installed",
            hints=("pip install 'cortex-gpu[all]'",),
        )
