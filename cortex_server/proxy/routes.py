"""The inference routes and the dialect of each."""

from __future__ import annotations

import re

from cortex_common.errors import NotFound
from cortex_server.proxy.adapters.base import DialectAdapter, anthropic_error
from cortex_server.proxy.adapters.count_tokens import CountTokensAdapter
from cortex_server.proxy.adapters.messages import MessagesAdapter
from cortex_server.proxy.adapters.openai import OpenAiAdapter
from cortex_server.proxy.adapters.request_body import read_form, read_json
from cortex_server.proxy.adapters.responses import (
    CompactAdapter,
    InputTokensAdapter,
    ResponsesAdapter,
)
from cortex_server.proxy.request_head import ReadRequest, RequestHead, Route
from cortex_server.proxy.response_store import OwnResponses

_ENGINE_PATHS = {"/v2/rerank": "/v1/rerank"}
"""Routes that have another path on engines. The one that Cohere's clients use has the same fields as the older one."""


def _openai(head: RequestHead, ident: bytes, body: bytes, _stored: OwnResponses) -> DialectAdapter:
    path = _ENGINE_PATHS.get(head.route.path, head.route.path)
    if head.form:
        content_type = head.headers.get(b"content-type", b"")
        form = read_form(body, content_type, head.model_in_query)
        return OpenAiAdapter(path, form.body, form.fields, ident, form.replace_model)
    body, fields = read_json(body, head.model_in_query)
    return OpenAiAdapter(path, body, fields, ident)


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

_RESPONSES: dict[str, ReadRequest] = {
    "/v1/responses": lambda _, ident, body, stored: ResponsesAdapter(body, ident, stored),
    "/v1/responses/compact": lambda _, ident, body, stored: CompactAdapter(body, ident, stored),
    "/v1/responses/input_tokens": (
        lambda _, ident, body, stored: InputTokensAdapter(body, ident, stored)
    ),
}

ROUTES: dict[bytes, Route] = {
    route.path.encode(): route
    for route in (
        *(Route(path, _openai) for path in _OPENAI),
        *(Route(path, adapter) for path, adapter in _RESPONSES.items()),
        Route(
            "/v1/messages",
            lambda _head, ident, body, _stored: MessagesAdapter(body, ident),
            anthropic_error,
            _BOTH_IDS,
        ),
        Route(
            "/v1/messages/count_tokens",
            lambda _head, ident, body, _stored: CountTokensAdapter(body, ident),
            anthropic_error,
            _BOTH_IDS,
        ),
    )
}

_MODELS = "/v1/models"

_PATHS = frozenset({_MODELS, *map(bytes.decode, ROUTES)})

_SLASHES = re.compile(r"/{2,}")


def canonical_path(path: str) -> str:
    """Return the path that a client with another base URL means: with or without /v1, with doubled or trailing slashes.

    Args:
        path: Any path; one that means none of these routes is returned unchanged.
    """
    plain = _SLASHES.sub("/", path).rstrip("/")
    unversioned = plain.removeprefix("/v1")
    for meant in (plain, f"/v1{plain}", unversioned):
        if meant in _PATHS:
            return meant
        if meant.startswith(f"{_MODELS}/"):
            return meant
    return path


_TAILS = sorted(
    ((path.removeprefix("/v1"), path) for path in _PATHS),
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
