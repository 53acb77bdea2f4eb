"""Anthropic's Messages and OpenAI's Responses, carried over to an engine's chat completions and back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

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
from cortex_server.proxy.adapter import CHAT, anthropic_refusal, openai_refusal, ruled
from cortex_server.proxy.body import with_model
from cortex_server.proxy.response import (
    AggregatedResponse,
    BufferedResponse,
    EngineError,
    EngineResponse,
    TranslatedStream,
)


class _TranslatingAdapter(ABC):
    """What the dialects have in common that are not the engine's."""

    path = CHAT

    def __init__(self, name: str, ident: bytes, *, stream: bool, session: str | None) -> None:
        self.name = name
        self.stream = stream
        self.session = (session or "").encode()
        self.dropped: tuple[str, ...] = ()
        self._ident = ident
        self._translated: TranslatedRequest | None = None
        self._open: StreamWriter | None = None
        self._begun = False

    @abstractmethod
    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> TranslatedRequest:
        """The request in the words of an engine."""

    @abstractmethod
    def _stream(self, translated: TranslatedRequest) -> StreamWriter:
        """The client's stream."""

    @abstractmethod
    def _tell(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        """Says a whole chat completion in the client's dialect."""

    @abstractmethod
    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""

    def prompt_tokens(self) -> int:
        """See `Dialogue`."""
        return tokens.estimate(self._translate(self.name, OPENAI, stream=self.stream).body)

    def ask(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """See `Dialogue`."""
        # llama.cpp leaves out what the client began only where it streams.
        stream = self.stream or self._begun or not traits.cancels_unstreamed
        translated = self._translated = self._translate(model, traits, stream=stream)
        self.dropped = translated.dropped
        return ruled(translated.body, model_config, context)

    def answer(self, status: int, *, streamed: bool) -> EngineResponse:
        """See `Dialogue`."""
        translated = self._translated
        assert translated is not None
        if status >= 400:
            return EngineError(status, self._refused, self.refusal)
        if streamed and self.stream:
            return TranslatedStream(self._opened(), self.refusal)
        if streamed:
            assembler = StreamAggregator(response_id=self._ident.decode())
            return AggregatedResponse(assembler, self._tell(translated), self.refusal)
        return BufferedResponse(self._tell(translated), self.refusal)

    def _refused(self, status: int, body: bytes) -> tuple[int, bytes]:
        return self.refusal(error_from_response(status, body))

    def event(self, error: CortexError) -> bytes:
        """See `Dialogue`."""
        return self._opened().fail(error)

    def keep_alive(self, comment: bytes) -> bytes:  # noqa: ARG002 - these dialects have pings without words
        """See `Dialogue`."""
        return self._opened().ping()

    def alone(self, traits: EngineTraits | None) -> None:  # noqa: ARG002
        """See `Dialogue`."""
        return

    def _opened(self) -> StreamWriter:
        """The client's stream. It may open before an engine is chosen: ids of calls depend on none."""
        if self._open is None:
            translated = self._translated or self._translate(self.name, OPENAI, stream=True)
            self._open = self._stream(translated)
        return self._open


class MessagesAdapter(_TranslatingAdapter):
    """POST /v1/messages."""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = anthropic_request.parse_request(body)
        super().__init__(
            self._request.model,
            ident,
            stream=bool(self._request.stream),
            session=self._request.user,
        )
        self._begun = self._request.messages[-1].role == "assistant"

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

    def _tell(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return lambda body: to_message(
            body,
            message_id=f"msg_{self._ident.decode()}",
            model=self.name,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
        )

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""
        known = self._translated
        estimate = tokens.estimate(known.body) if known else 0
        return error_response(error, self._ident.decode(), prompt_tokens=estimate)


class ResponsesAdapter(_TranslatingAdapter):
    """POST /v1/responses."""

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

    def _tell(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return lambda body: to_response(
            body,
            response_id=f"resp_{self._ident.decode()}",
            model=self.name,
            created=self._created,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            function_names=translated.function_names,
        )

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""
        return openai_refusal(error)


class CountTokensAdapter:
    """POST /v1/messages/count_tokens: the engine's own count where it has the route, else an estimate.

    No model is loaded for it: Claude Code asks two dozen times at once only to draw a bar.
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

    def prompt_tokens(self) -> int:
        """See `Dialogue`; any instance can count."""
        return 0

    def ask(
        self,
        model: str,
        model_config: ModelConfig | None,  # noqa: ARG002
        traits: EngineTraits,  # noqa: ARG002
        context: int | None = None,  # noqa: ARG002
    ) -> bytes:
        """See `Dialogue`."""
        return with_model(self._body, self.name, model) if model != self.name else self._body

    def answer(self, status: int, *, streamed: bool) -> EngineResponse:  # noqa: ARG002
        """See `Dialogue`."""
        return BufferedResponse(self._count, self.refusal)

    def _count(self, body: bytes) -> bytes:
        found = tokens.parse_count(body)
        return tokens.encode_count(self._estimate() if found is None else found)

    def _estimate(self) -> int:
        chat = anthropic_request.to_chat(
            self._request, model=self.name, traits=OPENAI, stream=False
        )
        return tokens.estimate(chat.body)

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""
        return anthropic_refusal(error, self._ident)

    def event(self, error: CortexError) -> bytes:
        """See `Dialogue`; never streamed."""
        return self.refusal(error)[1]

    def keep_alive(self, comment: bytes) -> bytes:  # noqa: ARG002
        """See `Dialogue`; never streamed."""
        return b""

    def alone(self, traits: EngineTraits | None) -> bytes | None:
        """See `Dialogue`."""
        if traits is not None and traits.count_tokens:
            return None
        return tokens.encode_count(self._estimate())
