"""Asking a model through the gateway's OpenAI API, as a stream with the times at which it came."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from cortex_cli.client import Target
from cortex_common.client.control import describe_http_error, tls_verify
from cortex_common.errors import CortexError, UpstreamFailed, UpstreamTimeout, from_envelope
from cortex_common.schema.base import WireModel


class Usage(WireModel):
    """Token counts at the end of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(WireModel):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(WireModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(WireModel):
    choices: tuple[_Choice, ...] = ()
    usage: Usage | None = None
    error: dict[str, Any] | None = None


class Message(WireModel):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What came with one chunk.

    Attributes:
        text: of the answer; may be empty.
        thinking: of the model's reasoning, where the engine separates it.
        at: seconds since the request was sent.
        finish: why the answer ended, on its last piece.
        usage: token counts, where the chunk had them.
        headers: of the answer; the same on each piece.
    """

    text: str
    thinking: str
    at: float
    finish: str | None
    usage: Usage | None
    headers: httpx.Headers


class Inference:
    """A connection to the gateway's /v1 routes.

    Args:
        where: the gateway and the key.
        connections: how many requests may be under way at once.
    """

    def __init__(self, where: Target, *, connections: int = 100) -> None:
        self._url = where.url
        self._http = httpx.AsyncClient(
            base_url=where.url,
            headers={"authorization": f"Bearer {where.key}"} if where.key else {},
            # A cold start or a long prompt is silent for minutes; the gateway has the deadlines.
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=tls_verify(where.url),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def chat(
        self, model: str, messages: Sequence[Message], **options: float | str | None
    ) -> AsyncIterator[Piece]:
        """Stream an answer.

        Args:
            model: name or alias.
            messages: the conversation.
            options: further keys of the request (temperature, max_tokens); those that are None are left out.

        Raises:
            CortexError: what the gateway or the engine reported, before or inside the stream.
            UpstreamFailed: the gateway can't be reached, or the stream broke off.
        """
        body = {
            "model": model,
            "messages": [m.model_dump() for m in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{k: v for k, v in options.items() if v is not None},
        }
        began = time.perf_counter()
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code >= 400:
                    what = "POST /v1/chat/completions"
                    raise from_envelope(await answer.aread(), answer.status_code, what)
                ended = False
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        ended = True
                        break
                    yield _piece(data, time.perf_counter() - began, answer.headers)
                if not ended:
                    raise UpstreamFailed("the answer broke off before its end")
        except httpx.TimeoutException as failed:
            raise UpstreamTimeout(f"the gateway at {self._url} did not answer in time") from failed
        except httpx.HTTPError as failed:
            reason = describe_http_error(failed)
            raise UpstreamFailed(
                f"the gateway at {self._url} can't be reached: {reason}",
                details={"unreachable": isinstance(failed, httpx.ConnectError)},
            ) from failed


def _piece(data: str, at: float, headers: httpx.Headers) -> Piece:
    try:
        chunk = _Chunk.model_validate_json(data)
    except ValidationError as failed:
        raise UpstreamFailed(f"the stream holds what is no chunk: {data[:80]}") from failed
    if chunk.error is not None:
        raise _stream_error(chunk.error)
    choice = chunk.choices[0] if chunk.choices else _Choice()
    return Piece(
        choice.delta.content or "",
        choice.delta.reasoning_content or "",
        at,
        choice.finish_reason,
        chunk.usage,
        headers,
    )


def _stream_error(error: dict[str, Any]) -> CortexError:
    return from_envelope(json.dumps({"error": {"code": "", **error}}).encode(), 502, "the stream")
