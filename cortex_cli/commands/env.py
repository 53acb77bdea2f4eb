"""`cortex env`: print settings that point a client at the gateway."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cortex_cli import options
from cortex_cli.client import GatewayTarget, run, target
from cortex_cli.client_settings import claude_code, codex
from cortex_cli.options import command_group
from cortex_cli.output import notify
from cortex_cli.terminal import write_out

app = command_group("Print settings that point a client at the gateway")


@app.command(
    "claude-code",
    epilog='Example: `eval "$(cortex env claude-code qwen3)" && claude`',
)
def claude_code_(model: options.Model, *, gateway: options.Gateway = None) -> None:
    """Print shell variables for Claude Code."""
    where = target(gateway, os.environ)
    write_out(claude_code(where, model, run(_context_length(where, model))))


@app.command("codex", epilog="Example: `cortex env codex qwen3 > ~/.codex/config.toml`")
def codex_(
    model: options.Model,
    *,
    gateway: options.Gateway = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the gateway in Codex")
    ] = "cortex",
) -> None:
    """Print settings for Codex's config.toml."""
    where = target(gateway, os.environ)
    write_out(codex(where, model, run(_context_length(where, model)), provider))
    if where.key:
        notify("Codex reads the key from CORTEX_API_KEY")


async def _context_length(where: GatewayTarget, model: str) -> int | None:
    """Return the tokens that a request to the model can use; None if unknown.

    Raises:
        CortexError: there is no such model, or the gateway is unreachable.
    """
    from cortex_cli.http import ErrorResponse, GatewayHttp
    from cortex_common.client.control import quote_path

    async with GatewayHttp(where) as http:
        try:
            entry = await http.get(f"/v1/models/{quote_path(model)}")
        except ErrorResponse as response:
            raise response.to_error() from response
    length = entry.get("context_length") if isinstance(entry, dict) else None
    return length if isinstance(length, int) else None
