"""Adapters for OpenAI's Responses API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec
from msgspec import Raw
from typing_extensions import override

from cortex_common.errors import BadRequest, CortexError
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.engine_errors import first_choice
from cortex_server.dialects.responses.compaction import (
    CompactedResponse,
    CompactionItem,
    encode_summary,
    user_messages,
)
from cortex_server.dialects.responses.history import resolve_input
from cortex_server.dialects.responses.parameters import parse_request
from cortex_server.dialects.responses.request import to_chat
from cortex_server.dialects.responses.resource import Response, new_response, to_usage
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.adapters.base import openai_error
from cortex_server.proxy.adapters.translation import TranslatingAdapter
from cortex_server.proxy.response_store import OwnResponses, StoredResponse


class ResponsesAdapter(TranslatingAdapter):
    """Adapter for POST /v1/responses.

    Args:
        body: Body of the request.
        ident: Id of the request.
        stored: Stored responses of the request's key.
    """

    _compact = False

    def __init__(self, body: bytes, ident: bytes, stored: OwnResponses) -> None:
        request = self._request = parse_request(body)
        super().__init__(
            request.model, ident, stream=bool(request.stream), session=request.prompt_cache_key
        )
        self._items = resolve_input(request, stored)
        self._stored = stored
        # Not the id of the request, which clients can choose: it must be unique, and can be used to see the response.
        self._new_id = secrets.token_hex(16)
        self._response = new_response(
            request,
            response_id=f"resp_{self._new_id}",
            created=time.time(),
            stored=request.store is not False and stored.store.enabled,
        )

    @override
    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> TranslatedRequest:
        return to_chat(
            self._request,
            self._items,
            model=model,
            traits=traits,
            stream=stream,
            compact=self._compact,
        )

    @override
    def _stream(self, translated: TranslatedRequest) -> StreamWriter:
        return ResponsesStreamWriter(
            self._response,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            tool_names=translated.tool_names,
            now=time.time,
            prompt_tokens=tokens.estimate(translated.body),
            on_complete=self._store,
        )

    @override
    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        def translate(body: bytes) -> bytes:
            response = to_response(
                body,
                self._response,
                call_ids=translated.call_ids,
                only_first_call=translated.only_first_call,
                tool_names=translated.tool_names,
                now=time.time,
                prompt_tokens=tokens.estimate(translated.body),
            )
            self._store(response)
            return msgspec.json.encode(response)

        return translate

    def _store(self, response: Response) -> None:
        if response.store or self._stored.connection:
            turn = StoredResponse(
                id=response.id,
                previous=response.previous_response_id,
                input=tuple(bytes(item) for item in self._items.own),
                output={item.id: msgspec.json.encode(item) for item in response.output},
                body=msgspec.json.encode(response),
            )
            self._stored.put(turn, stored=response.store)

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        return openai_error(error)


class CompactAdapter(ResponsesAdapter):
    """Adapter for POST /v1/responses/compact: the model summarizes the conversation."""

    _compact = True

    def __init__(self, body: bytes, ident: bytes, stored: OwnResponses) -> None:
        super().__init__(body, ident, stored)
        if self.stream:
            raise BadRequest("stream: compactions are not streamed", param="stream")
        self._request.text = None
        if self._request.tools:
            self._request.tool_choice = Raw(b'"none"')

    @override
    def _translate_body(self, translated: TranslatedRequest) -> Callable[[bytes], bytes]:
        return self._to_compacted

    def _to_compacted(self, body: bytes) -> bytes:
        choice, usage = first_choice(body)
        summary = (choice.message and choice.message.text) or ""
        items = [*self._items.earlier, *self._items.own]
        compaction = CompactionItem(f"cmp_{self._new_id}", encode_summary(summary))
        compacted = CompactedResponse(
            id=self._response.id,
            created_at=self._response.created_at,
            output=[*user_messages(items, self._new_id), compaction],
            usage=to_usage(usage),
        )
        return msgspec.json.encode(compacted)


class InputTokensAdapter(ResponsesAdapter):
    """Adapter for POST /v1/responses/input_tokens: an estimate, for which no model is loaded."""

    @override
    def prompt_tokens(self) -> int:
        # Any instance will do.
        return 0

    @override
    def local_response(self, traits: EngineTraits | None) -> bytes | None:
        body = self._translate(self.name, OPENAI, stream=False).body
        return tokens.encode_input_tokens(tokens.estimate(body))
