"""One request in the dialect of its client: what is asked of the engine, and how its answer is told.

The seam between `exchange`, which knows nothing of dialects, and `dialects`, which know nothing of sockets.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from cortex_common.config.catalogue import ModelProfile
from cortex_common.errors import CortexError, NotSupported, envelope_bytes
from cortex_server.dataplane.answers import (
    Answer,
    Assembled,
    MendedWhole,
    PassedStream,
    PassedWhole,
    Refused,
    Told,
    TranslatedStream,
)
from cortex_server.dataplane.body import Head, as_stream, with_model, with_usage
from cortex_server.dialects import anthropic_request, responses_request, tokens
from cortex_server.dialects.anthropic_answer import to_message
from cortex_server.dialects.anthropic_errors import error_body
from cortex_server.dialects.anthropic_stream import MessagesStream
from cortex_server.dialects.assemble import Assembler
from cortex_server.dialects.client_stream import ClientStream
from cortex_server.dialects.echo import Echo
from cortex_server.dialects.engine_errors import from_answer
from cortex_server.dialects.mend import mend_answer
from cortex_server.dialects.openai_errors import engine_error_body
from cortex_server.dialects.params import ParamRules, apply_rules
from cortex_server.dialects.repair import StreamRepair
from cortex_server.dialects.responses_answer import to_response
from cortex_server.dialects.responses_stream import ResponsesStream
from cortex_server.dialects.traits import GENERIC, EngineTraits
from cortex_server.dialects.translated import Translated

CHAT = "/v1/chat/completions"


class Dialogue(Protocol):
    """See the module.

    Attributes:
        name: the model, as the client calls it.
        stream: the client wants a stream.
        path: of the engine's route, after its prefix.
        session: what the body says of the conversation that it belongs to; empty where it does not.
        dropped: what the engine was not told, because there is no way to; for the journal.
    """

    name: str
    stream: bool
    path: str
    dropped: tuple[str, ...]
    session: bytes

    def prompt_tokens(self) -> int:
        """An estimate.

        Raises:
            BadRequest: the request can't be understood.
        """
        ...

    def ask(
        self,
        model: str,
        profile: ModelProfile | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """The engine's body.

        Args:
            model: as the engine calls it.
            profile: what is to be changed in requests.
            traits: of the engine.
            context: tokens that the instance takes; None where only the profile may know.

        Raises:
            BadRequest: the request asks for what can't be carried over to this engine.
        """
        ...

    def answer(self, status: int, *, streamed: bool) -> Answer:
        """What becomes of an engine's answer."""
        ...

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """An error as HTTP status and body."""
        ...

    def event(self, error: CortexError) -> bytes:
        """An error inside a stream that is open already."""
        ...

    def keep_alive(self, comment: bytes) -> bytes:
        """What keeps an open stream alive while nothing is said."""
        ...

    def alone(self, traits: EngineTraits | None) -> bytes | None:
        """The answer, where no engine need be asked; `traits` None when there is none to ask."""
        ...


def openai_refusal(error: CortexError) -> tuple[int, bytes]:
    """An error in OpenAI's shape."""
    return error.status, envelope_bytes(error)


def anthropic_refusal(error: CortexError, ident: bytes) -> tuple[int, bytes]:
    """An error in Anthropic's shape."""
    return error_body(error, ident.decode())


class OpenAi:
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
        head: Head,
        ident: bytes,
        model_in: Callable[[bytes, str, str], bytes] = with_model,
    ) -> None:
        self.dropped: tuple[str, ...] = ()
        self.path = path
        self.name = head.name
        self.stream = bool(head.stream)
        self.session = bytes(head.prompt_cache_key)
        self._body = body
        self._head = head
        self._ident = ident.decode()
        self._with_model = model_in
        self._asked_usage = False
        self._asked_stream = False

    def prompt_tokens(self) -> int:
        """See `Dialogue`; 0 where the body is no prompt."""
        return tokens.estimate(self._body) if self.path in _GENERATING else 0

    def ask(
        self,
        model: str,
        profile: ModelProfile | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """See `Dialogue`."""
        body = self._body
        if model != self.name:
            body = self._with_model(body, self.name, model)
        if self.path not in _GENERATING:
            return body
        body = _ruled(body, profile, context)
        if self.stream and not self._head.stream_options:
            self._asked_usage = True
            body = with_usage(body)
        elif not self.stream and not traits.cancels_unstreamed:
            self._asked_stream = True
            body = as_stream(body)
        return body

    def answer(self, status: int, *, streamed: bool) -> Answer:
        """See `Dialogue`."""
        if status >= 400:
            return Refused(status, self._refused, openai_refusal)
        if self.path not in _GENERATING:
            return PassedWhole()
        if not streamed:
            return MendedWhole(self._mend)
        if self._asked_stream:
            assembler = Assembler(answer_id=self._ident, model=self.name)
            return Assembled(assembler, lambda body: self._mend(body)[0], openai_refusal)
        return PassedStream(self._repair())

    def _mend(self, body: bytes) -> tuple[bytes, Counter[str]]:
        mended, repairs = mend_answer(body, self._ident)
        return Echo(self.name)(mended), repairs

    def _refused(self, status: int, body: bytes) -> tuple[int, bytes]:
        if status in _NO_ROUTE and self.path != CHAT:
            missing = NotSupported(
                f"the engine behind {self.name!r} has no {self.path}",
                hints=["GET /v1/models lists other models"],
            )
            return openai_refusal(missing)
        return engine_error_body(status, body)

    def _repair(self) -> StreamRepair:
        body = self._body
        return StreamRepair(
            answer_id=self._ident,
            usage_wanted=self._head.wants_usage,
            usage_asked=self._asked_usage,
            prompt_tokens=lambda: tokens.estimate(body),
            echo=Echo(self.name),
        )

    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""
        return openai_refusal(error)

    def event(self, error: CortexError) -> bytes:
        """See `Dialogue`."""
        return b"data: " + envelope_bytes(error) + b"\n\n"

    def keep_alive(self, comment: bytes) -> bytes:
        """See `Dialogue`."""
        return b": " + comment + b"\n\n"

    def alone(self, traits: EngineTraits | None) -> None:  # noqa: ARG002
        """See `Dialogue`."""
        return


_NO_ROUTE = frozenset({404, 405, 501})
_GENERATING = frozenset({CHAT, "/v1/completions"})


def _ruled(body: bytes, profile: ModelProfile | None, context: int | None) -> bytes:
    """The body as the model's profile wants it."""
    params = None if profile is None else profile.params
    if profile is None or params is None:
        return body
    rules = ParamRules(
        params.defaults, params.overrides, frozenset(params.strip), params.clamp_max_tokens
    )
    estimate = tokens.estimate(body) if params.clamp_max_tokens else 0
    return apply_rules(body, rules, context=context or profile.context, prompt_tokens=estimate)


class _Translating(ABC):
    """What the dialects have in common that are not the engine's."""

    path = CHAT

    def __init__(self, name: str, ident: bytes, *, stream: bool, session: str | None) -> None:
        self.name = name
        self.stream = stream
        self.session = (session or "").encode()
        self.dropped: tuple[str, ...] = ()
        self._ident = ident
        self._translated: Translated | None = None
        self._open: ClientStream | None = None

    @abstractmethod
    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> Translated:
        """The request in the words of an engine."""

    @abstractmethod
    def _stream(self, translated: Translated) -> ClientStream:
        """The client's stream."""

    @abstractmethod
    def _tell(self, translated: Translated) -> Callable[[bytes], bytes]:
        """Says a whole chat completion in the client's dialect."""

    @abstractmethod
    def refusal(self, error: CortexError) -> tuple[int, bytes]:
        """See `Dialogue`."""

    def prompt_tokens(self) -> int:
        """See `Dialogue`."""
        return tokens.estimate(self._translate(self.name, GENERIC, stream=self.stream).body)

    def ask(
        self,
        model: str,
        profile: ModelProfile | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """See `Dialogue`."""
        stream = self.stream or not traits.cancels_unstreamed
        translated = self._translated = self._translate(model, traits, stream=stream)
        self.dropped = translated.dropped
        return _ruled(translated.body, profile, context)

    def answer(self, status: int, *, streamed: bool) -> Answer:
        """See `Dialogue`."""
        translated = self._translated
        assert translated is not None
        if status >= 400:
            return Refused(status, self._refused, self.refusal)
        if streamed and self.stream:
            return TranslatedStream(self._opened(), self.refusal)
        if streamed:
            assembler = Assembler(answer_id=self._ident.decode())
            return Assembled(assembler, self._tell(translated), self.refusal)
        return Told(self._tell(translated), self.refusal)

    def _refused(self, status: int, body: bytes) -> tuple[int, bytes]:
        return self.refusal(from_answer(status, body))

    def event(self, error: CortexError) -> bytes:
        """See `Dialogue`."""
        return self._opened().fail(error)

    def keep_alive(self, comment: bytes) -> bytes:  # noqa: ARG002 - these dialects have pings without words
        """See `Dialogue`."""
        return self._opened().ping()

    def alone(self, traits: EngineTraits | None) -> None:  # noqa: ARG002
        """See `Dialogue`."""
        return

    def _opened(self) -> ClientStream:
        """The client's stream. It may open before an engine is chosen: ids of calls depend on none."""
        if self._open is None:
            translated = self._translated or self._translate(self.name, GENERIC, stream=True)
            self._open = self._stream(translated)
        return self._open


class Messages(_Translating):
    """POST /v1/messages."""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = anthropic_request.read_request(body)
        super().__init__(
            self._request.model,
            ident,
            stream=bool(self._request.stream),
            session=self._request.user,
        )

    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> Translated:
        return anthropic_request.to_chat(self._request, model=model, traits=traits, stream=stream)

    def _stream(self, translated: Translated) -> ClientStream:
        return MessagesStream(
            message_id=f"msg_{self._ident.decode()}",
            model=self.name,
            request_id=self._ident.decode(),
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            prompt_tokens=tokens.estimate(translated.body),
        )

    def _tell(self, translated: Translated) -> Callable[[bytes], bytes]:
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
        return error_body(error, self._ident.decode(), prompt_tokens=estimate)


class Responses(_Translating):
    """POST /v1/responses."""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = responses_request.read_request(body)
        self._created = time.time()
        super().__init__(
            self._request.model,
            ident,
            stream=bool(self._request.stream),
            session=self._request.prompt_cache_key,
        )

    def _translate(self, model: str, traits: EngineTraits, *, stream: bool) -> Translated:
        return responses_request.to_chat(self._request, model=model, traits=traits, stream=stream)

    def _stream(self, translated: Translated) -> ClientStream:
        return ResponsesStream(
            response_id=f"resp_{self._ident.decode()}",
            model=self.name,
            created=self._created,
            call_ids=translated.call_ids,
            only_first_call=translated.only_first_call,
            function_names=translated.function_names,
        )

    def _tell(self, translated: Translated) -> Callable[[bytes], bytes]:
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


class CountTokens:
    """POST /v1/messages/count_tokens: the engine's own count where it has the route, else an estimate.

    No model is loaded for it: Claude Code asks two dozen times at once only to draw a bar.
    """

    path = "/v1/messages/count_tokens"
    stream = False
    session = b""

    def __init__(self, body: bytes, ident: bytes) -> None:
        self._request = anthropic_request.read_request(body)
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
        profile: ModelProfile | None,  # noqa: ARG002
        traits: EngineTraits,  # noqa: ARG002
        context: int | None = None,  # noqa: ARG002
    ) -> bytes:
        """See `Dialogue`."""
        return with_model(self._body, self.name, model) if model != self.name else self._body

    def answer(self, status: int, *, streamed: bool) -> Answer:  # noqa: ARG002
        """See `Dialogue`."""
        return Told(self._count, self.refusal)

    def _count(self, body: bytes) -> bytes:
        found = tokens.read_count(body)
        return tokens.count_body(self._estimate() if found is None else found)

    def _estimate(self) -> int:
        chat = anthropic_request.to_chat(
            self._request, model=self.name, traits=GENERIC, stream=False
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
        if traits is not None and traits.counts_tokens:
            return None
        return tokens.count_body(self._estimate())
