"""Adapter for Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.anthropic import request as anthropic_request
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapters.translation import TranslatingAdapter


class MessagesAdapter(TranslatingAdapter):
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
            shows_thinking=self._request.shows_thinking,
            stop_sequences=self._request.stop_sequences or (),
        )

    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return lambda body: to_message(
            body,
            message_id=f"msg_{self._ident.decode()}",
            model=self.name,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            shows_thinking=self._request.shows_thinking,
            stop_sequences=self._request.stop_sequences or (),
            prompt_tokens=tokens.estimate(translated.body),
        )

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        known = self._translated
        estimate = tokens.estimate(known.body) if known else 0
        return error_response(error, self._ident.decode(), prompt_tokens=estimate)
