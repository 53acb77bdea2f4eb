"""Prompt sizes: an estimate, and the parsing of engines' own counts.

The estimate is used when no engine can be asked, and to choose an instance with enough context. It is deliberately
simple, and cheap enough for the dozens of counts that Claude Code requests at once.
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


class _Request(Struct):
    messages: list[_Message] = []
    tools: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()
    query: Raw = Raw()
    documents: Raw = Raw()


class _Part(Struct):
    type: str | None = None
    text: str = ""


class _EngineCount(Struct):
    input_tokens: int | None = None
    count: int | None = None
    tokens: list[Raw] | None = None


class _CountTokensResponse(Struct):
    input_tokens: int


class _InputTokensResponse(Struct):
    input_tokens: int
    object: str = "response.input_tokens"


_requests = msgspec.json.Decoder(_Request)
_parts = msgspec.json.Decoder(_Part)
_engine_counts = msgspec.json.Decoder(_EngineCount)


def estimate(body: bytes) -> int:
    """Estimate the input tokens of a completion, an embedding or a ranking: one token per four bytes.

    An image counts 1000 tokens, whatever its size. A body of another shape counts by its length, so the estimate
    never raises.
    """
    try:
        request = _requests.decode(body)
        size = sum(
            len(bytes(part))
            for part in (
                request.tools,
                request.prompt,
                request.input,
                request.query,
                request.documents,
            )
        )
        images = 0
        for message in request.messages:
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


def parse_count(body: bytes) -> int | None:
    """Parse the token count in an engine's response; return None if there is none.

    Accepts `{"input_tokens"}` (the count_tokens and input_tokens routes), `{"count"}` (vLLM's /tokenize) and
    `{"tokens": [...]}` (llama.cpp's /tokenize).
    """
    try:
        parsed = _engine_counts.decode(body)
    except (ValueError, RecursionError):
        return None
    if parsed.input_tokens is not None:
        return parsed.input_tokens
    if parsed.count is not None:
        return parsed.count
    return None if parsed.tokens is None else len(parsed.tokens)


def encode_count(tokens: int) -> bytes:
    """Encode the response body of POST /v1/messages/count_tokens."""
    return msgspec.json.encode(_CountTokensResponse(tokens))


def encode_input_tokens(tokens: int) -> bytes:
    """Encode the response body of POST /v1/responses/input_tokens."""
    return msgspec.json.encode(_InputTokensResponse(tokens))


def _texts(content: str | list[Raw] | None) -> list[str | None]:
    """Return the texts of a message; None stands for an image or another non-text part."""
    if isinstance(content, list):
        parts = [_parts.decode(part) for part in content]
        return [part.text if part.type == "text" else None for part in parts]
    return [content or ""]
