"""OpenAI's own routes, whose clients speak as engines do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, NotSupported, envelope_bytes
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.engine_options import without_named_tool_choice
from cortex_server.dialects.openai_errors import engine_error_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.chunk_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter
from cortex_server.proxy.adapter import CHAT, openai_refusal, ruled
from cortex_server.proxy.body import BodyFields, as_stream, with_model, with_usage
from cortex_server.proxy.response import (
    AggregatedResponse,
    EngineError,
    EngineResponse,
    PassthroughBody,
    PassthroughStream,
    RepairedBody,
)

_KEY_REFUSED = 401
_NO_ROUTE = frozenset({404, 405, 501})
_GENERATING = frozenset({CHAT, "/v1/completions"})
# Elsewhere `stream` may mean other things than events: audio as it is made.
_STREAMING = _GENERATING | {"/v1/images/generations", "/v1/images/edits"}


class OpenAiAdapter:
    """OpenAI's own routes: the bytes go to the engine as they came, but for what has to be changed.

    Args:
        path: of the route.
        body: of the request.
        head: what was read of it.
        ident: id of the request.
        model_in: replaces the model's name in this kind of body.
    """

    def __init__(
        self,
        path: str,
        body: bytes,
        head: BodyFields,
        ident: bytes,
        model_in: Callable[[bytes, str, str], bytes] = with_model,
    ) -> None:
        self.dropped: tuple[str, ...] = ()
        self.path = path
        self.name = head.name
        self.stream = bool(head.stream) and path in _STREAMING
        self.session = bytes(head.prompt_cache_key)
        self._body = body
        self._head = head
        self._ident = ident.decode()
        self._with_model = model_in
        self._asked_usage = False
        self._asked_stream = False
        self._opened = False

    def prompt_tokens(self) -> int:
        """See `Dialogue`; 0 where the body is no prompt."""
        return tokens.estimate(self._body) if self.path in _GENERATING else 0

    def ask(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """See `Dialogue`."""
        body = self._body
        if model != self.name:
            body = self._with_model(body, self.name, model)
        if self.path not in _GENERATING:
            return body
        body = ruled(body, model_config, context)
        if not traits.named_tool_choice:
            body = without_named_tool_choice(body)
        if self.stream and not self._head.wants_usage:
            self._asked_usage = True
            body = with_usage(body)
        elif not self.stream and not traits.cancels_unstreamed:
            self._asked_stream = True
            body = as_stream(body)
        return body

    def answer(self, status: int, *, streamed: bool) -> EngineResponse:
        """See `Dialogue`."""
        if status >= 400:
            return EngineError(status, self._refused, openai_refusal)
        if self.path not in _GENERATING:
            return PassthroughBody()
        if not streamed:
            return RepairedBody(self._mend)
        if self._asked_stream:
            assembler = StreamAggregator(response_id=self._ident, model=self.name)
            return AggregatedResponse(assembler, lambda body: self._mend(body)[0], openai_refusal)
        return PassthroughStream(self._repair(), opened=self._opened)

    def _mend(self, body: bytes) -> tuple[bytes, Counter[str]]:
        mended, repairs = repair_completion(body, self._ident)
        return ModelNameRewriter(self.name)(mended), repairs

    def _refused(self, status: int, body: bytes) -> tuple[int, bytes]:
        if status == _KEY_REFUSED:
            return openai_refusal(error_from_response(status, body))
        if status in _NO_ROUTE and self.path != CHAT:
            missing = NotSupported(
                f"the engine behind {self.name!r} has no {self.path}",
                hints=["GET /v1/models lists other models"],
            )
            return openai_refusal(missing)
        return engine_error_response(status, body)

    def _repair(self) -> StreamRepair:
        body = self._body
        return StreamRepair(
            response_id=self._ident,
            client_wants_usage=self._head.wants_usage,
            gateway_requested_usage=self._asked_usage,
            prompt_tokens=lambda: tokens.estimate(body),
            rename_model=ModelNameRewriter(self.name),
        )

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""
        return openai_refusal(error)

    def event(self, error: CortexError) -> bytes:
        """See `Dialogue`."""
        return b"data: " + envelope_bytes(error) + b"\n\n"

    def keep_alive(self, comment: bytes) -> bytes:
        """See `Dialogue`."""
        self._opened = True
        return b": " + comment + b"\n\n"

    def alone(self, traits: EngineTraits | None) -> None:  # noqa: ARG002
        """See `Dialogue`."""
        return
