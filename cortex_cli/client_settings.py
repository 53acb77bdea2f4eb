"""Settings of clients, as text to paste. Pure."""

from __future__ import annotations

import shlex

from cortex_cli.client import Target
from cortex_cli.render.formats import toml_value

NO_KEY = "unused"
"""Clients insist on a key, also where the gateway asks for none."""

_MOST_ANSWER = 32_000
"""What Claude Code asks for unless told otherwise."""


def claude_code(where: Target, model: str, context: int | None) -> str:
    """Shell variables for Claude Code.

    Args:
        where: the gateway and the key.
        model: for all that it does.
        context: tokens that a request may use, where known: it takes any model for one of Claude's otherwise, and
            compacts too late.
    """
    values = {
        "ANTHROPIC_BASE_URL": where.url,
        "ANTHROPIC_AUTH_TOKEN": where.key or NO_KEY,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        # A line of its own with each request would stand before all that engines have cached.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",
        # Local models load for minutes and compute long prompts for minutes.
        "API_TIMEOUT_MS": "3600000",
    }
    if context is not None:
        values["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(context)
        values["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(min(_MOST_ANSWER, max(1, context // 4)))
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def codex(where: Target, model: str, context: int | None, provider: str) -> str:
    """Lines for Codex's config.toml.

    Args:
        where: the gateway; the key stays out of the file.
        model: to use.
        context: tokens that a request may use, where known.
        provider: what Codex is to call the gateway.
    """
    top = {"model": model, "model_provider": provider}
    sized = {} if context is None else {"model_context_window": context}
    entry = {
        "name": provider,
        "base_url": f"{where.url}/v1",
        # Codex refuses to start where the variable that it is told of is not set.
        **({"env_key": "CORTEX_API_KEY"} if where.key else {}),
        "wire_api": "responses",
        # Local models load for minutes and compute long prompts for minutes.
        "stream_idle_timeout_ms": 3_600_000,
    }
    lines = [f"{key} = {toml_value(value)}\n" for key, value in (top | sized).items()]
    lines.append(f"\n[model_providers.{toml_value(provider)}]\n")
    lines += [f"{key} = {toml_value(value)}\n" for key, value in entry.items()]
    return "".join(lines)
