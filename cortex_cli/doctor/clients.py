"""The clients that `cortex doctor --client` can check for."""

from __future__ import annotations

from enum import StrEnum


class Client(StrEnum):
    """Values of --client."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
