"""How many tokens a prompt has: an estimate, and the engines' own counts read.

The estimate serves where no engine can be asked, and for choosing an instance with enough context; it
is deliberately simple, and cheap enough for the dozens that Claude Code asks for at once.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1000
_TOKENS_PER_MESSAGE = 4  # role and turn markers of chat templates


class _Message(Struct):
    content: str | list[Raw] | None = None
    reasoning_content: Raw = Raw()
    tool_calls: Raw = Raw()


class _Chat(Struct):
    messages: list[_Message] = []
    tools: Raw = Raw()
    prompt: Raw = Raw()


class _Part(Struct):
    type: str | None = None
    text: str = ""


class _Count(Struct):
    input_tokens: int | None = None
    count: int | None = None
    tokens: list[Raw] | None = None


class _CountAnswer(Struct):
    input_tokens: int


_chats = msgspec.json.Decoder(_Chat)
_parts = msgspec.json.Decoder(_Part)
_counts = msgspec.json.Decoder(_Count)


def estimate(body: bytes) -> int:
    """Tokens of the prompt in the body of a chat or text completion: a token for each four bytes.

    Images count 1000 each, whatever the length of their data. A body that is no such JSON counts by
    its length, so the estimate never raises.
    """
    try:
        chat = _chats.decode(body)
        size = len(bytes(chat.tools)) + len(bytes(chat.prompt))
        images = 0
        for message in chat.messages:
            size += len(bytes(message.reasoning_content)) + len(bytes(message.tool_calls))
            size += _TOKENS_PER_MESSAGE * _BYTES_PER_TOKEN
            for text in _texts(message.content):
                if text is None:
                    images += 1
                else:
                    size += len(text.encode())
    except (ValueError, RecursionError):
        return -(-len(body) // _BYTES_PER_TOKEN)
    return -(-size // _BYTES_PER_TOKEN) + images * _TOKENS_PER_IMAGE


def read_count(body: bytes) -> int | None:
    """The count in an engine's answer; None when there is none.

    Knows `{"input_tokens"}` (the count_tokens and input_tokens routes), `{"count"}` (vLLM's /tokenize) and
    `{"tokens": [...]}` (llama.cpp's /tokenize).
    """
    try:
        found = _counts.decode(body)
    except (ValueError, RecursionError):
        return None
    if found.input_tokens is not None:
        return found.input_tokens
    if found.count is not None:
        return found.count
    return None if found.tokens is None else len(found.tokens)


def count_body(tokens: int) -> bytes:
    """The body of POST /v1/messages/count_tokens."""
    return msgspec.json.encode(_CountAnswer(tokens))


def _texts(content: str | list[Raw] | None) -> list[str | None]:
    """The texts of a message; None stands for an image or the like."""
    if isinstance(content, list):
        parts = [_parts.decode(part) for part in content]
        return [part.text if part.type == "text" else None for part in parts]
    return [content or ""]
