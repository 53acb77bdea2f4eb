"""One request in the dialect of its client: what is asked of the engine, and how its answer is told.

The seam between `exchange`, which knows nothing of dialects, and `dialects`, which know nothing of sockets. `passing`
has the dialogue of clients that speak as engines do, `translating` those of the others.
"""

from __future__ import annotations

from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, envelope_bytes
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects import tokens
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.param_rules import ParamRules, apply_rules
from cortex_server.proxy.response import EngineResponse

CHAT = "/v1/chat/completions"


class DialectAdapter(Protocol):
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
        model_config: ModelConfig | None,
        traits: EngineTraits,
        context: int | None = None,
    ) -> bytes:
        """The engine's body.

        Args:
            model: as the engine calls it.
            model_config: what is to be changed in requests.
            traits: of the engine.
            context: tokens that the instance takes; None where only the profile may know.

        Raises:
            BadRequest: the request asks for what can't be carried over to this engine.
        """
        ...

    def answer(self, status: int, *, streamed: bool) -> EngineResponse:
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
    return error_response(error, ident.decode())


def ruled(body: bytes, model_config: ModelConfig | None, context: int | None) -> bytes:
    """The body as the model's profile wants it."""
    params = None if model_config is None else model_config.params
    if model_config is None or params is None:
        return body
    rules = ParamRules(
        params.defaults, params.overrides, frozenset(params.strip), params.clamp_max_tokens
    )
    estimate = tokens.estimate(body) if params.clamp_max_tokens else 0
    return apply_rules(body, rules, context=context or model_config.context, prompt_tokens=estimate)
