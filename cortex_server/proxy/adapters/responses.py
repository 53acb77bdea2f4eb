"""Adapter for OpenAI's Responses API."""

from __future__ import annotations

import time
from collections.abc import Callable

from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.responses import request as responses_request
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapters.base import openai_error
from cortex_server.proxy.adapters.translation import TranslatingAdapter


class ResponsesAdapter(TranslatingAdapter):
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
