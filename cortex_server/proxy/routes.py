"""The inference routes and the dialect of each."""

from __future__ import annotations

from cortex_common.errors import NotFound
from cortex_server.proxy.adapters.base import DialectAdapter, anthropic_error
from cortex_server.proxy.adapters.count_tokens import CountTokensAdapter
from cortex_server.proxy.adapters.messages import MessagesAdapter
from cortex_server.proxy.adapters.openai import OpenAiAdapter
from cortex_server.proxy.adapters.request_body import read_fields, read_form, with_form_model
from cortex_server.proxy.adapters.responses import ResponsesAdapter
from cortex_server.proxy.request_head import RequestHead, Route

_ENGINE_PATHS = {"/v2/rerank": "/v1/rerank"}
"""Routes that have another path on engines. The one that Cohere's clients use has the same fields as the older one."""


def _openai(head: RequestHead, ident: bytes, body: bytes) -> DialectAdapter:
    path = _ENGINE_PATHS.get(head.route.path, head.route.path)
    if head.form:
        return OpenAiAdapter(
            path, body, read_form(body, head.model_in_query), ident, with_form_model
        )
    return OpenAiAdapter(path, body, read_fields(body, head.model_in_query), ident)


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
            anthropic_error,
            _BOTH_IDS,
        ),
        Route(
            "/v1/messages/count_tokens",
            lambda _, ident, body: CountTokensAdapter(body, ident),
            anthropic_error,
            _BOTH_IDS,
        ),
    )
}

_TAILS = sorted(
    ((path.removeprefix("/v1"), path) for path in ("/v1/models", *map(bytes.decode, ROUTES))),
    key=lambda pair: -len(pair[0]),
)


def suggest_route(path: str) -> NotFound | None:
    """Return the error for a path that a wrong base URL made of a route; None when it resembles none.

    Args:
        path: A path that is not served.
    """
    stripped = path.rstrip("/")
    intended = next((route for tail, route in _TAILS if stripped.endswith(tail)), None)
    if intended is None:
        return None
    if intended == path:  # the API has it, so this is another listener
        return NotFound(
            f"there is no {path} on the metrics listener",
            hints=["[gateway] listen in cortex.toml is the address of the API"],
        )
    return NotFound(
        f"there is no {path} here; did you mean {intended}?",
        hints=["OpenAI clients need a base URL that ends in /v1, Anthropic clients one without it"],
    )
