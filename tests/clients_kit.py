"""Helpers for tests with real clients: scripted engine responses, and the SDKs configured for a gateway."""

from __future__ import annotations

import json
from typing import Any

from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs.engine import SSE_HEAD, Call, Script, chunked, http_response
from rigs.lazy_import import anthropic, openai

MIXED_STREAM = sse_stream(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let me "}),
    chunk({"reasoning_content": "see."}),
    chunk({"content": "It is "}),
    chunk({"content": "süß 😀."}),
    chunk(call_delta(0, '{"city"', call_id="a", name="weather")),
    chunk(call_delta(1, '{"city":"Rome"}', call_id="b", name="weather")),
    chunk(call_delta(0, ':"Paris"}')),
    chunk(finish="stop"),
    usage_chunk(prompt=11, completion=5),
)
"""Reasoning, text and two interleaved tool calls, with the wrong finish reason."""

HELLO_STREAM = sse_stream(
    chunk({"content": "hello"}), chunk(finish="stop"), usage_chunk(prompt=11, completion=5)
)

MESSAGES: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def stream_response(*pieces: bytes) -> Script:
    """Stream these bytes in response to every request."""

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD, *(chunked(piece) for piece in pieces), b"0\r\n\r\n")

    return script


def in_sequence(*scripts: Script) -> Script:
    """Use the first script for the first request and so on; the last script is used for all others."""
    remaining = list(scripts)

    async def script(call: Call) -> None:
        await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(call)

    return script


def stream_and_disconnect(data: bytes) -> Script:
    """Stream these bytes and close the connection."""

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(data))
        call.writer.close()

    return script


def json_response(body: dict[str, Any], status: bytes = b"200 OK") -> Script:
    """Respond with a JSON document."""

    async def script(call: Call) -> None:
        await call.send(http_response(json.dumps(body).encode(), status))

    return script


def completion(content: str | None = "hello", **message: Any) -> dict[str, Any]:
    """Return an unstreamed chat completion."""
    full_message = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": full_message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


async def never_respond(call: Call) -> None:
    """Send nothing until the gateway disconnects."""
    await call.wait_closed()


def request_body(call: Call) -> dict[str, Any]:
    """Return the JSON body of a request to an engine."""
    body: dict[str, Any] = json.loads(call.body)
    return body


def anthropic_client(url: str, key: str = "k") -> anthropic.AsyncAnthropic:
    """Return the Anthropic SDK's client, without retries."""
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)


def openai_client(url: str, key: str = "k") -> openai.AsyncOpenAI:
    """Return the OpenAI SDK's client, without retries."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
