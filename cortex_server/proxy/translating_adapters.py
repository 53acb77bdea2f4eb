"""Adapters that translate Anthropic's Messages and OpenAI's Responses to chat completions and back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.anthropic import request as anthropic_request
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.responses import request as responses_request
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapter import (
    CHAT,
    DialectAdapter,
    anthropic_error,
    apply_model_config,
    openai_error,
)
from cortex_server.proxy.body import with_model
from cortex_server.proxy.response import (
    AggregatedResponse,
    BufferedResponse,
    EngineError,
    EngineResponse,
    TranslatedStream,
)


class _TranslatingAdapter(DialectAdapter, ABC):
    """Common parts of the dialects that engines don't have."""

    path = CHAT

    def __init__(self, name: str, ident: bytes, *, stream: bool, session: str | None) -> None:
        self.name = name
        self.stream = stream
        self.session = (session or "").encode()
        self.dropped: tuple[str, ...] = ()
        self._ident = ident
        self._translated: TranslatedRequest | None = None
        self._client_stream: StreamWriter | None = None
        self._continues_prefill = False

    @abstractmethod
    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> TranslatedRequest:
        """Return the request in the engine's dialect."""

    @abstractmethod
    def _stream(self, translated: TranslatedRequest) -> StreamWriter:
        """Create the client's stream."""

    @abstractmethod
    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        """Return what translates a whole chat completion to the client's dialect."""

    @override
    def prompt_tokens(self) -> int:
        return tokens.estimate(self._translate(self.name, OPENAI, stream=self.stream).body)

    @override
    def engine_body(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        # llama.cpp leaves out the assistant message that it continues only when it streams.
        stream = self.stream or self._continues_prefill or not traits.cancels_unstreamed
        translated = self._translated = self._translate(model, traits, stream=stream)
        self.dropped = translated.dropped
        return apply_model_config(translated.body, model_config, context)

    @override
    def response(self, status: int, *, streamed: bool) -> EngineResponse:
        translated = self._translated
        assert translated is not None
        if status >= 400:
            return EngineError(status, self._error_body, self.error_response)
        if streamed and self.stream:
            return TranslatedStream(self._open_stream(), self.error_response)
        if streamed:
            assembler = StreamAggregator(response_id=self._ident.decode())
            return AggregatedResponse(
                assembler, self._translate_body(translated), self.error_response
            )
        return BufferedResponse(self._translate_body(translated), self.error_response)

    def _error_body(self, status: int, body: bytes) -> tuple[int, bytes]:
        return self.error_response(error_from_response(status, body))

    @override
    def error_event(self, error: CortexError) -> bytes:
        return self._open_stream().fail(error)

    @override
    def keep_alive(self, comment: bytes) -> bytes:
        # The pings of these dialects have no text.
        return self._open_stream().ping()

    @override
    def local_response(self, traits: EngineTraits | None) -> None:
        return

    def _open_stream(self) -> StreamWriter:
        """Return the client's stream; it can open before an engine is chosen, because call ids do not depend on one."""
        if self._client_stream is None:
            translated = self._translated or self._translate(self.name, OPENAI, stream=True)
            self._client_stream = self._stream(translated)
        return self._client_stream


class MessagesAdapter(_TranslatingAdapter):
    """Adapter for POST /v1/messages."""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = anthropic_request.parse_request(body)
        super().__init__(
            self._request.model,
            ident,
            stream=bool(self._request.stream),
            session=self._request.user,
        )
        self._continues_prefill = self._request.messages[-1].role == "assistant"

    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> TranslatedRequest:
        return anthropic_request.to_chat(self._request, model=model, traits=traits, stream=stream)

    def _stream(self, translated: TranslatedRequest) -> StreamWriter:
        return MessagesStreamWriter(
            message_id=f"msg_{self._ident.decode()}",
            model=self.name,
            request_id=self._ident.decode(),
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            prompt_tokens=tokens.estimate(translated.body),
        )

    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return lambda body: to_message(
            body,
            message_id=f"msg_{self._ident.decode()}",
            model=self.name,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
        )

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        known = self._translated
        estimate = tokens.estimate(known.body) if known else 0
        return error_response(error, self._ident.decode(), prompt_tokens=estimate)


class ResponsesAdapter(_TranslatingAdapter):
    """Adapter for POST /v1/responses."""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = responses_request.parse_request(body)
        self._created = time.time()
        super().__init__(
            self._request.model,
            ident,
            stream=bool(self._request.stream),
            session=self._request.prompt_cache_key,
        )

    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> TranslatedRequest:
        return responses_request.to_chat(self._request, model=model, traits=traits, stream=stream)

    def _stream(self, translated: TranslatedRequest) -> StreamWriter:
        return ResponsesStreamWriter(
            response_id=f"resp_{self._ident.decode()}",
            model=self.name,
            created=self._created,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            function_names=translated.function_names,
        )

    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return lambda body: to_response(
            body,
            response_id=f"resp_{self._ident.decode()}",
            model=self.name,
            created=self._created,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            function_names=translated.function_names,
        )

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        return openai_error(error)


class CountTokensAdapter(DialectAdapter):
    """Adapter for POST /v1/messages/count_tokens: the engine's own count if it has the route, else an estimate.

    No model is loaded for it: Claude Code sends two dozen of these at a time only to draw a progress bar.
    """

    path = "/v1/messages/count_tokens"
    stream = False
    session = b""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = anthropic_request.parse_request(body)
        self.name = self._request.model
        self.dropped: tuple[str, ...] = ()
        self._body = body
        self._ident = ident

    @override
    def prompt_tokens(self) -> int:
        # Any instance can count.
        return 0

    @override
    def engine_body(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        return with_model(self._body, self.name, model) if model != self.name else self._body

    @override
    def response(self, status: int, *, streamed: bool) -> EngineResponse:
        return BufferedResponse(self._count, self.error_response)

    def _count(self, body: bytes) -> bytes:
        found = tokens.parse_count(body)
        return tokens.encode_count(self._estimate() if found is None else found)

    def _estimate(self) -> int:
        chat = anthropic_request.to_chat(
            self._request, model=self.name, traits=OPENAI, stream=False
        )
        return tokens.estimate(chat.body)

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        return anthropic_error(error, self._ident)

    @override
    def error_event(self, error: CortexError) -> bytes:
        # Never streamed.
        return self.error_response(error)[1]

    @override
    def keep_alive(self, comment: bytes) -> bytes:
        # These responses are never streamed.
        return b""

    @override
    def local_response(self, traits: EngineTraits | None) -> bytes | None:
        if traits is not None and traits.count_tokens:
            return None
        return tokens.encode_count(self._estimate())
