"""What the tests of real clients share: scripted answers of an engine, and the SDKs pointed at a gateway."""

from __future__ import annotations

import json
from typing import Any

from dialects_kit import call, chunk, usage_chunk, wire
from rigs.engine import SSE_HEAD, Call, Script, chunked, http_response
from rigs.lazy_import import anthropic, openai

TALK = wire(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let me "}),
    chunk({"reasoning_content": "see."}),
    chunk({"content": "It is "}),
    chunk({"content": "süß 😀."}),
    chunk(call(0, '{"city"', ident="a", name="weather")),
    chunk(call(1, '{"city":"Rome"}', ident="b", name="weather")),
    chunk(call(0, ':"Paris"}')),
    chunk(finish="stop"),
    usage_chunk(prompt=11, completion=5),
)
"""Thinking, text and two calls whose pieces come interleaved, with the wrong reason for its end."""

SAY = wire(chunk({"content": "hello"}), chunk(finish="stop"), usage_chunk(prompt=11, completion=5))

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def say(*pieces: bytes) -> Script:
    """Stream these bytes, whoever asks."""

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD, *(chunked(piece) for piece in pieces), b"0\r\n\r\n")

    return script


def in_turn(*scripts: Script) -> Script:
    """Answer the first request by the first script and so on; the last one stays."""
    left = list(scripts)

    async def script(call: Call) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(call)

    return script


def cut_after(data: bytes) -> Script:
    """Stream these bytes and die."""

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD, chunked(data))
        call.writer.close()

    return script


def answer(body: dict[str, Any], status: bytes = b"200 OK") -> Script:
    """Answer with a JSON document."""

    async def script(call: Call) -> None:
        await call.send(http_response(json.dumps(body).encode(), status))

    return script


def completion(content: str | None = "hello", **message: Any) -> dict[str, Any]:
    """A whole chat completion."""
    told = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": told, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


async def silent(call: Call) -> None:
    """Say nothing until the gateway hangs up."""
    await call.wait_closed()


def asked(call: Call) -> dict[str, Any]:
    """What an engine was asked."""
    found: dict[str, Any] = json.loads(call.body)
    return found


def claude(url: str, key: str = "k") -> anthropic.AsyncAnthropic:
    """Anthropic's SDK, without repeats of its own."""
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)


def gpt(url: str, key: str = "k") -> openai.AsyncOpenAI:
    """OpenAI's SDK, without repeats of its own."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
