"""The inference routes: which paths take the hot path, and in which dialect each is spoken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cortex_common.errors import CortexError, NotFound
from cortex_server.proxy.adapter import DialectAdapter, anthropic_refusal, openai_refusal
from cortex_server.proxy.body import read_form, read_head, with_form_model
from cortex_server.proxy.openai_adapter import OpenAiAdapter
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.translating_adapters import (
    CountTokensAdapter,
    MessagesAdapter,
    ResponsesAdapter,
)


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route.

    Attributes:
        path: as the client asks.
        read: makes the dialogue of a request of its head, id and body. Raises: CortexError, when it can't be one.
        refusal: says an error in the route's dialect.
        ident_lines: of a response's head, which carry the request's id in the place of the question mark.
    """

    path: str
    read: Callable[[RequestHead, bytes, bytes], DialectAdapter]
    refusal: Callable[[CortexError, bytes], tuple[int, bytes]] = field(
        default=lambda error, _ident: openai_refusal(error)
    )
    ident_lines: bytes = b"x-request-id: ?\r\n"


_AT_ENGINES = {"/v2/rerank": "/v1/rerank"}
"""Routes that engines have elsewhere: the one that Cohere's clients ask has the same fields as the older one."""


def _openai(head: RequestHead, ident: bytes, body: bytes) -> DialectAdapter:
    path = _AT_ENGINES.get(head.route.path, head.route.path)
    if head.form:
        return OpenAiAdapter(
            path, body, read_form(body, head.model_in_query), ident, with_form_model
        )
    return OpenAiAdapter(path, body, read_head(body, head.model_in_query), ident)


_BOTH_IDS = b"x-request-id: ?\r\nrequest-id: ?\r\n"

_OPENAI = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/tokenize",
    "/detokenize",
)

ROUTES: dict[bytes, Route] = {
    route.path.encode(): route
    for route in (
        *(Route(path, _openai) for path in _OPENAI),
        Route("/v1/responses", lambda _, ident, body: ResponsesAdapter(body, ident)),
        Route(
            "/v1/messages",
            lambda _, ident, body: MessagesAdapter(body, ident),
            anthropic_refusal,
            _BOTH_IDS,
        ),
        Route(
            "/v1/messages/count_tokens",
            lambda _, ident, body: CountTokensAdapter(body, ident),
            anthropic_refusal,
            _BOTH_IDS,
        ),
    )
}

_TAILS = sorted(
    ((path.removeprefix("/v1"), path) for path in ("/v1/models", *map(bytes.decode, ROUTES))),
    key=lambda pair: -len(pair[0]),
)


def suggest_route(path: str) -> NotFound | None:
    """The error for a path that a wrong base URL made of a route; None when it is not like any.

    Args:
        path: one that is not served.
    """
    end = path.rstrip("/")
    meant = next((whole for tail, whole in _TAILS if end.endswith(tail)), None)
    if meant is None:
        return None
    if meant == path:  # which the API has, so this is not its listener
        return NotFound(
            f"there is no {path} here, where the metrics are",
            hints=["[gateway] listen in cortex.toml is the address of the API"],
        )
    return NotFound(
        f"there is no {path} here; did you mean {meant}?",
        hints=["OpenAI's clients take a base URL that ends in /v1, Anthropic's one without it"],
    )
