"""The interface between a request and the dialect of its client: the engine's body, and the client's response.

`request` knows nothing about dialects, and `dialects` nothing about sockets. `openai` serves clients that use the
engines' own dialect; `messages`, `responses` and `count_tokens` translate.
"""

from __future__ import annotations

from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, envelope_bytes
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.param_rules import ParamRules, apply_rules
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.first_bytes import Format
from cortex_server.proxy.response.verdict import Rejection


class DialectAdapter(Protocol):
    """One request in its client's dialect.

    Attributes:
        name: Model name as sent by the client.
        stream: Whether the client asked for a stream.
        path: Path of the engine's route, without its prefix.
        session: Id of the conversation from the body; empty when it has none.
        dropped: Request fields that the engine can't be given, for the access log.
        cuts_failed_streams: Whether the body of a stream that ends with an error event is left without its end.
            LangChain4j takes a chat stream that ends properly for a whole answer, whatever its events say.
    """

    name: str
    stream: bool
    path: str
    dropped: tuple[str, ...]
    session: bytes
    cuts_failed_streams: bool

    def prompt_tokens(self) -> int:
        """Return an estimate of the prompt's length; 0 when the body is not a prompt.

        Raises:
            BadRequest: The request is invalid.
        """
        ...

    def input_tokens(self) -> int:
        """Return an estimate of what the request's input counts, for engines that report no usage.

        Raises:
            BadRequest: The request is invalid.
        """
        ...

    def engine_body(
        self,
        model: str,
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """Return the body for the engine.

        Args:
            model: Model name that the engine uses.
            model_config: Its rules for request parameters apply.
            traits: Capabilities of the engine.
            context: Tokens that the instance accepts; None when only the model config may know.

        Raises:
            BadRequest: The request needs something that this engine can't be given.
        """
        ...

    @property
    def generates(self) -> bool:
        """Whether the engine's response is a chat or text completion."""
        ...

    def response(self, body_format: Format) -> EngineResponse:
        """Return what converts the engine's response to the client's.

        Args:
            body_format: What the engine's body is; EVENTS or JSON if it is a completion, else OTHER.
        """
        ...

    def engine_error(self, rejection: Rejection) -> tuple[int, bytes]:
        """Return an engine's error response as HTTP status and body."""
        ...

    def error_response(self, error: CortexError) -> tuple[int, bytes]:
        """Return an error as HTTP status and body."""
        ...

    def error_event(self, error: CortexError) -> bytes:
        """Return an error as an event of a stream that has started."""
        ...

    def keep_alive(self, comment: bytes) -> bytes:
        """Return what keeps an open stream alive while there is nothing to send."""
        ...

    def local_response(self, traits: EngineTraits | None) -> bytes | None:
        """Return the response if no engine is needed for it, else None.

        Args:
            traits: Capabilities of the chosen engine; None when no instance is ready.

        Raises:
            BadRequest: The request is invalid.
        """
        ...


def openai_error(error: CortexError) -> tuple[int, bytes]:
    """Return an error as HTTP status and OpenAI's body."""
    return error.status, envelope_bytes(error)


def anthropic_error(error: CortexError, ident: bytes) -> tuple[int, bytes]:
    """Return an error as HTTP status and Anthropic's body."""
    return error_response(error, ident.decode())


def apply_model_config(body: bytes, model_config: ModelConfig | None, context: int | None) -> bytes:
    """Return the body with the model config's rules for parameters applied."""
    params = None if model_config is None else model_config.params
    if model_config is None or params is None:
        return body
    rules = ParamRules(
        params.defaults, params.overrides, frozenset(params.strip), params.clamp_max_tokens
    )
    estimate = tokens.estimate(body) if params.clamp_max_tokens else 0
    return apply_rules(body, rules, context=context or model_config.context, prompt_tokens=estimate)
