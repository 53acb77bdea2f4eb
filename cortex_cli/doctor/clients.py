"""The clients that are known."""

from __future__ import annotations

from enum import StrEnum


class Client(StrEnum):
    """Kinds of clients."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
