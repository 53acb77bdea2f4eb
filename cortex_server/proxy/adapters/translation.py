"""Base class of the adapters for dialects that engines don't have: requests become chat completions, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapters.base import DialectAdapter, apply_model_config
from cortex_server.proxy.response.base import NO_REPAIRS, EngineResponse
from cortex_server.proxy.response.body import AggregatedResponse, BufferedResponse
from cortex_server.proxy.response.first_bytes import Format
from cortex_server.proxy.response.stream import StreamedBody, TranslatedStream
from cortex_server.proxy.response.verdict import CHAT, Rejection


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
    def input_tokens(self) -> int:
        return self.prompt_tokens()

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

    @property
    @override
    def generates(self) -> bool:
        return True

    @override
    def response(self, body_format: Format) -> EngineResponse:
        translated = self._translated
        assert translated is not None
        if self.stream:
            stream = TranslatedStream(self._open_stream())
            return stream if body_format is Format.EVENTS else StreamedBody(stream)
        translate = self._translate_body(translated)

        def convert(body: bytes) -> tuple[bytes, Counter[str]]:
            return translate(body), NO_REPAIRS

        if body_format is Format.JSON:
            return BufferedResponse(convert)
        aggregator = StreamAggregator(response_id=self._ident.decode())
        return AggregatedResponse(aggregator, 1, convert)

    @override
    def engine_error(self, rejection: Rejection) -> tuple[int, bytes]:
        return self.error_response(rejection.error)

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
        stream = self._client_stream
        if stream is None or (stream.error is not None and not stream.started):
            translated = self._translated or self._translate(self.name, OPENAI, stream=True)
            stream = self._client_stream = self._stream(translated)
        return stream
