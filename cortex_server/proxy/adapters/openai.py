"""Adapter for OpenAI's own routes, whose clients use the engines' dialect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, NotSupported, envelope_bytes
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.engine_options import (
    for_openai_reasoning_model,
    is_openai_reasoning_model,
    without_named_tool_choice,
)
from cortex_server.dialects.openai_errors import engine_error_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.completion_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter
from cortex_server.proxy.adapters.base import DialectAdapter, apply_model_config, openai_error
from cortex_server.proxy.adapters.request_body import BodyFields, as_stream, with_model, with_usage
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.body import AggregatedResponse, BufferedResponse, PassthroughBody
from cortex_server.proxy.response.first_bytes import Format
from cortex_server.proxy.response.stream import PassthroughStream, StreamedBody
from cortex_server.proxy.response.verdict import CHAT, Fault, Rejection

_OUR_KEY = frozenset({401, 403})
_NO_SUCH_ROUTE = frozenset({404, 405, 501})
_GENERATION = frozenset({CHAT, "/v1/completions"})
_NOT_COUNTED = frozenset({"/tokenize", "/detokenize"})
# On other routes `stream` can mean something other than events, such as audio as it is generated.
_STREAMABLE = _GENERATION | {"/v1/images/generations", "/v1/images/edits"}


class OpenAiAdapter(DialectAdapter):
    """Adapter that forwards bytes as they are, except for what has to be changed.

    Args:
        path: Path of the route.
        body: Body of the request.
        fields: Fields read from it.
        ident: Id of the request.
        replace_model: Replaces the model's name in this kind of body.
    """

    cuts_failed_streams = True

    def __init__(
        self,
        path: str,
        body: bytes,
        fields: BodyFields,
        ident: bytes,
        replace_model: Callable[[bytes, str, str], bytes] = with_model,
    ) -> None:
        self.dropped: tuple[str, ...] = ()
        self.path = path
        self.name = fields.name
        self.stream = bool(fields.stream) and path in _STREAMABLE
        self.session = bytes(fields.prompt_cache_key)
        self._body = body
        self._fields = fields
        self._ident = ident.decode()
        self._replace_model = replace_model
        self._added_usage = False

    @override
    def prompt_tokens(self) -> int:
        return tokens.estimate(self._body) if self.path in _GENERATION else 0

    @override
    def input_tokens(self) -> int:
        is_json = self._replace_model is with_model
        return tokens.estimate(self._body) if is_json and self.path not in _NOT_COUNTED else 0

    @override
    def engine_body(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        body = self._body
        if model != self.name:
            body = self._replace_model(body, self.name, model)
        if self.path not in _GENERATION:
            return body
        body = apply_model_config(body, model_config, context)
        if not traits.named_tool_choice:
            body = without_named_tool_choice(body)
        if traits.openai_reasoning_models and is_openai_reasoning_model(model):
            body = for_openai_reasoning_model(body, model)
        if self.stream and not self._fields.wants_usage:
            self._added_usage = True
            body = with_usage(body)
        elif not self.stream and not traits.cancels_unstreamed:
            body = as_stream(body)
        return body

    @property
    @override
    def generates(self) -> bool:
        return self.path in _GENERATION

    @override
    def response(self, body_format: Format) -> EngineResponse:
        if body_format is Format.OTHER:
            return PassthroughBody()
        choices = self._fields.choices
        if self.stream:
            stream = PassthroughStream(self._stream_repair(), choices)
            return stream if body_format is Format.EVENTS else StreamedBody(stream)
        if body_format is Format.JSON:
            return BufferedResponse(self._repair_body)
        aggregator = StreamAggregator(response_id=self._ident, model=self.name)
        return AggregatedResponse(aggregator, choices, self._repair_body)

    def _repair_body(self, body: bytes) -> tuple[bytes, Counter[str]]:
        repaired, repairs = repair_completion(body, self._ident)
        return ModelNameRewriter(self.name)(repaired), repairs

    @override
    def engine_error(self, rejection: Rejection) -> tuple[int, bytes]:
        status = rejection.status
        if status in _OUR_KEY and rejection.fault is not Fault.CLIENT:
            return openai_error(rejection.error)
        if status in _NO_SUCH_ROUTE and self.path != CHAT:
            missing = NotSupported(
                f"the engine behind {self.name!r} has no {self.path}",
                hints=["GET /v1/models lists other models"],
            )
            return openai_error(missing)
        return engine_error_response(status, rejection.body)

    def _stream_repair(self) -> StreamRepair:
        body = self._body
        return StreamRepair(
            response_id=self._ident,
            client_wants_usage=self._fields.wants_usage,
            gateway_requested_usage=self._added_usage,
            prompt_tokens=lambda: tokens.estimate(body),
            rename_model=ModelNameRewriter(self.name),
        )

    @override
    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        return openai_error(error)

    @override
    def error_event(self, error: CortexError) -> bytes:
        return b"data: " + envelope_bytes(error) + b"\n\n"

    @override
    def keep_alive(self, comment: bytes) -> bytes:
        return b": " + comment + b"\n\n"

    @override
    def local_response(self, traits: EngineTraits | None) -> None:
        return
