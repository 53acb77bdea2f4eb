"""Chat with a model through the gateway's OpenAI API, as a stream of timed chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from cortex_cli.client import GatewayTarget
from cortex_cli.http import ErrorResponse, GatewayHttp, ServerEvent
from cortex_common.errors import CortexError, UpstreamFailed, from_envelope
from cortex_common.schema.base import WireModel

_PATH = "/v1/chat/completions"


class Usage(WireModel):
    """Token counts at the end of a response."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(WireModel):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(WireModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Completion(WireModel):
    choices: tuple[_Choice, ...] = ()
    usage: Usage | None = None
    error: dict[str, Any] | None = None


class Message(WireModel):
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """One chunk of a response.

    Attributes:
        text: text of the response; can be empty.
        thinking: reasoning of the model, if the engine reports it separately.
        at: seconds since the request was sent.
        finish: why the response ended, on its last chunk.
        usage: token counts, if the chunk has them.
        headers: headers of the response; the same on each chunk.
    """

    text: str
    thinking: str
    at: float
    finish: str | None
    usage: Usage | None
    headers: Mapping[str, str]


class Inference:
    """A connection to the gateway's /v1 routes.

    Args:
        target: the gateway and the key.
        connections: maximum number of concurrent requests.
    """

    def __init__(self, target: GatewayTarget, *, connections: int = 100) -> None:
        self._http = GatewayHttp(target, connections=connections)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc, traceback)

    async def chat(
        self,
        model: str,
        messages: Sequence[Message],
        on_progress: Callable[[str], None] = lambda _text: None,
        **options: float | str | None,
    ) -> AsyncIterator[ChatChunk]:
        """Stream a response.

        Args:
            model: name or alias.
            messages: the conversation.
            on_progress: called with what a request waits for before its response, such as "loading on beast, about
                12 s to go".
            options: further fields of the request, such as temperature and max_tokens; None leaves a field out.

        Raises:
            CortexError: the error that the gateway or the engine reported, before or within the stream.
            UpstreamFailed: the gateway is unreachable, or the stream is incomplete.
        """
        body = {
            "model": model,
            "messages": [m.model_dump() for m in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{k: v for k, v in options.items() if v is not None},
        }
        try:
            async with self._http.stream(_PATH, body) as stream:
                stream.on_comment = on_progress
                async for event in stream:
                    if event.data == b"[DONE]":
                        return
                    yield _parse_chunk(event, stream.headers)
        except ErrorResponse as response:
            raise response.to_error() from response
        raise UpstreamFailed("the response ended without [DONE]")


def _parse_chunk(event: ServerEvent, headers: Mapping[str, str]) -> ChatChunk:
    try:
        completion = _Completion.model_validate_json(event.data)
    except ValidationError as error:
        preview = event.data[:80].decode("utf-8", "replace")
        raise UpstreamFailed(f"the stream contains an invalid chunk: {preview}") from error
    if completion.error is not None:
        raise _stream_error(completion.error)
    choice = completion.choices[0] if completion.choices else _Choice()
    return ChatChunk(
        choice.delta.content or "",
        choice.delta.reasoning_content or "",
        event.at,
        choice.finish_reason,
        completion.usage,
        headers,
    )


def _stream_error(error: Mapping[str, Any]) -> CortexError:
    envelope = json.dumps({"error": {"code": "", **error}}).encode()
    return from_envelope(envelope, 502, "the stream")
