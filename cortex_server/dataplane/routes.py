"""The inference routes: which paths take the hot path, and in which dialect each is spoken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import msgspec

from cortex_common.errors import CortexError, NotFound
from cortex_server.dataplane.body import read_form, read_head, with_form_model
from cortex_server.dataplane.dialogues import Dialogue, anthropic_refusal, openai_refusal
from cortex_server.dataplane.passing import OpenAi
from cortex_server.dataplane.translating import CountTokens, Messages, Responses


class Asked(msgspec.Struct, frozen=True):
    """A whole request.

    Attributes:
        path: without the query.
        query: what stands behind the question mark.
        named: its headers by name, in lower case.
        ident: its id.
    """

    path: str
    query: bytes
    named: Mapping[bytes, bytes]
    ident: bytes
    body: bytes

    @property
    def model_in_query(self) -> str | None:
        """The model named in the query, if any."""
        if self.query.find(b"model=") < 0:
            return None
        return parse_qs(self.query.decode("latin-1")).get("model", [None])[0]


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route.

    Attributes:
        path: as the client asks.
        read: makes the dialogue of a whole request. Raises: CortexError, when it can't be one.
        refusal: says an error in the route's dialect.
        ident_headers: response headers that carry the request's id.
    """

    path: str
    read: Callable[[Asked], Dialogue]
    refusal: Callable[[CortexError, bytes], tuple[int, bytes]] = field(
        default=lambda error, _ident: openai_refusal(error)
    )
    ident_headers: tuple[bytes, ...] = (b"x-request-id",)


def _openai(asked: Asked) -> Dialogue:
    if asked.named.get(b"content-type", b"").lower().startswith(b"multipart/"):
        head = read_form(asked.body, asked.model_in_query)
        return OpenAi(asked.path, asked.body, head, asked.ident, with_form_model)
    head = read_head(asked.body, asked.model_in_query)
    return OpenAi(asked.path, asked.body, head, asked.ident)


_BOTH_IDS = (b"x-request-id", b"request-id")

_OPENAI = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
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
        Route("/v1/responses", lambda asked: Responses(asked.body, asked.ident)),
        Route(
            "/v1/messages",
            lambda asked: Messages(asked.body, asked.ident),
            anthropic_refusal,
            _BOTH_IDS,
        ),
        Route(
            "/v1/messages/count_tokens",
            lambda asked: CountTokens(asked.body, asked.ident),
            anthropic_refusal,
            _BOTH_IDS,
        ),
    )
}

_TAILS = sorted(
    ((path.removeprefix("/v1"), path) for path in ("/v1/models", *map(bytes.decode, ROUTES))),
    key=lambda pair: -len(pair[0]),
)


def misdirected(path: str) -> NotFound | None:
    """The error for a path that a wrong base URL made of a route; None when it is not like any.

    Args:
        path: one that is not served.
    """
    end = path.rstrip("/")
    meant = next((whole for tail, whole in _TAILS if end.endswith(tail)), None)
    if meant is None:
        return None
    return NotFound(
        f"there is no {path} here; did you mean {meant}?",
        hints=["OpenAI's clients take a base URL that ends in /v1, Anthropic's one without it"],
    )
