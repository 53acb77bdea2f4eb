"""Base class of the adapters for dialects that engines don't have: requests become chat completions, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapters.base import CHAT, DialectAdapter, apply_model_config
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.body import (
    AggregatedResponse,
    BufferedResponse,
    EngineError,
)
from cortex_server.proxy.response.stream import TranslatedStream


class TranslatingAdapter(DialectAdapter, ABC):
    """Common parts of the dialects that engines don't have."""

    path = CHAT
    cuts_failed_streams = False

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
    def local_response(self, traits: EngineTraits | None) -> bytes | None:
        return None

    def _open_stream(self) -> StreamWriter:
        """Return the client's stream; it can open before an engine is chosen, because call ids do not depend on one."""
        if self._client_stream is None:
            translated = self._translated or self._translate(self.name, OPENAI, stream=True)
            self._client_stream = self._stream(translated)
        return self._client_stream
