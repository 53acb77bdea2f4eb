"""Settings that point clients at the gateway, as text to paste. Pure."""

from __future__ import annotations

import shlex

from cortex_cli.client import GatewayTarget
from cortex_cli.render.formats import toml_value

PLACEHOLDER_KEY = "unused"
"""Clients require a key even when the gateway does not."""

_DEFAULT_MAX_OUTPUT = 32_000
"""Output tokens that Claude Code requests by default."""

_TIMEOUT_MS = 3_600_000
"""Local models can take minutes to load and to process long prompts."""


def claude_code(target: GatewayTarget, model: str, context: int | None) -> str:
    """Return shell variables for Claude Code.

    Args:
        target: the gateway and the key.
        model: model for everything that it does.
        context: tokens that a request can use, if known; otherwise Claude Code assumes the context of Anthropic's
            models and compacts too late.
    """
    values = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.key or PLACEHOLDER_KEY,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        # A line that differs in each request would come first in the prompt and defeat the engines' prefix cache.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",
        "API_TIMEOUT_MS": str(_TIMEOUT_MS),
    }
    if context is not None:
        values["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(context)
        max_output = min(_DEFAULT_MAX_OUTPUT, max(1, context // 4))
        values["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(max_output)
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def codex(target: GatewayTarget, model: str, context: int | None, provider: str) -> str:
    """Return settings for Codex's config.toml.

    Args:
        target: the gateway; the key is not written to the file.
        model: model to use.
        context: tokens that a request can use, if known.
        provider: name of the gateway in Codex.
    """
    settings: dict[str, object] = {"model": model, "model_provider": provider}
    if context is not None:
        settings["model_context_window"] = context
    entry = {
        "name": provider,
        "base_url": f"{target.url}/v1",
        # Codex refuses to start if the variable is not set.
        **({"env_key": "CORTEX_API_KEY"} if target.key else {}),
        "wire_api": "responses",
        "stream_idle_timeout_ms": _TIMEOUT_MS,
    }
    lines = [f"{key} = {toml_value(value)}\n" for key, value in settings.items()]
    lines.append(f"\n[model_providers.{toml_value(provider)}]\n")
    lines += [f"{key} = {toml_value(value)}\n" for key, value in entry.items()]
    return "".join(lines)
