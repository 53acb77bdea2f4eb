"""`cortex demo`: run a complete fleet on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cortex_cli.client import run
from cortex_cli.options import single_command
from cortex_common.errors import NotSupported

app = single_command()

_REQUIRED_PACKAGES = ("fastapi", "gguf", "mistralrs", "psutil", "uvicorn")


@app.command(
    epilog="Examples: `cortex demo`, `cortex demo --once`, `cortex demo --model qwen.gguf`"
)
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first response")] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", exists=True, dir_okay=False, help="GGUF file to use instead of tiny models"
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the gateway, if it is free")] = 8000,
    view: Annotated[bool, typer.Option(help="Show the fleet live on a terminal")] = True,
) -> None:
    """Run a complete fleet on this host, with a real engine."""
    _require_packages()
    from cortex_cli.demo.demo import DemoOptions, run_demo
    from cortex_cli.demo.files import Ports

    options = DemoOptions(once=once, model=model, ports=Ports(api=port), view=view)
    raise typer.Exit(run(run_demo(options)))


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in _REQUIRED_PACKAGES if find_spec(name) is None]
    if missing:
        raise NotSupported(
            f"the demo requires all parts of cortex; missing packages: {', '.join(missing)}",
            hints=("pip install 'cortex-gpu[all]'",),
        )
