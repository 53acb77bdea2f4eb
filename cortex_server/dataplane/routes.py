"""The inference routes: which paths take the hot path, and where they go on the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route.

    Attributes:
        path: as the client asks, which is also the path on the engine, after the engine's prefix.
        streams: answers may be server-sent events.
    """

    path: str
    streams: bool = True


ROUTES: dict[bytes, Route] = {
    route.path.encode(): route
    for route in (
        Route("/v1/chat/completions"),
        Route("/v1/completions"),
        Route("/v1/embeddings", streams=False),
    )
}
