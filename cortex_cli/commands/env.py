"""`cortex env`: the settings that point a client at this gateway, to paste."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from cortex_cli import options
from cortex_cli.client import Target, run, target
from cortex_cli.client_settings import claude_code, codex
from cortex_cli.options import noun
from cortex_cli.output import say

app = noun("Print the settings that point a client at the gateway")


@app.command(
    "claude-code",
    epilog='Example: `eval "$(cortex env claude-code qwen3)" && claude`',
)
def claude_code_(model: options.Model, *, gateway: options.Gateway = None) -> None:
    """Print shell variables for Claude Code."""
    where = target(gateway, os.environ)
    sys.stdout.write(claude_code(where, model, run(_context(where, model))))


@app.command("codex", epilog="Example: `cortex env codex qwen3 > ~/.codex/config.toml`")
def codex_(
    model: options.Model,
    *,
    gateway: options.Gateway = None,
    model_config: Annotated[
        str, typer.Option(metavar="NAME", help="What Codex is to call the gateway")
    ] = "cortex",
) -> None:
    """Print settings for Codex's config.toml."""
    where = target(gateway, os.environ)
    sys.stdout.write(codex(where, model, run(_context(where, model)), model_config))
    if where.key:
        say("Codex reads the key from CORTEX_API_KEY")


async def _context(where: Target, model: str) -> int | None:
    """Tokens that a request to the model may use, where the gateway knows.

    Raises:
        CortexError: there is no such model, or no gateway.
    """
    from cortex_cli.doctor.http import Asker, Refused
    from cortex_common.client.control import quote_path
    from cortex_common.errors import ERRORS_BY_CODE, UpstreamFailed

    async with Asker(where, {}) as asker:
        try:
            found: dict[str, Any] = await asker.get(f"/v1/models/{quote_path(model)}")
        except Refused as refused:
            said = refused.body["error"] if isinstance(refused.body, dict) else {}
            kind = ERRORS_BY_CODE.get(said.get("code", ""), UpstreamFailed)
            raise kind(
                str(said.get("message") or refused), hints=said.get("hints", ())
            ) from refused
    return found.get("context_length")
