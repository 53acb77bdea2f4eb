"""Adapter for the counting of tokens in Anthropic's API."""

from __future__ import annotations

from collections import Counter

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.anthropic import request as anthropic_request
from cortex_server.proxy.adapters.base import DialectAdapter, anthropic_error
from cortex_server.proxy.adapters.request_body import with_model
from cortex_server.proxy.response.base import NO_REPAIRS, EngineResponse
from cortex_server.proxy.response.body import BufferedResponse
from cortex_server.proxy.response.first_bytes import Format
from cortex_server.proxy.response.verdict import Rejection


class CountTokensAdapter(DialectAdapter):
    """Adapter for POST /v1/messages/count_tokens: the engine's own count if it has the route, else an estimate.

    No model is loaded for it: Claude Code sends two dozen of these at a time only to draw a progress bar.
    """

    path = "/v1/messages/count_tokens"
    stream = False
    session = b""
    cuts_failed_streams = False

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
    def input_tokens(self) -> int:
        # Nothing is generated.
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

    @property
    @override
    def generates(self) -> bool:
        return False

    @override
    def response(self, body_format: Format) -> EngineResponse:
        return BufferedResponse(self._count, is_completion=False)

    @override
    def engine_error(self, rejection: Rejection) -> tuple[int, bytes]:
        return 200, tokens.encode_count(self._estimate())

    def _count(self, body: bytes) -> tuple[bytes, Counter[str]]:
        found = tokens.parse_count(body)
        return tokens.encode_count(self._estimate() if found is None else found), NO_REPAIRS

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
