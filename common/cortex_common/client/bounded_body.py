"""Response bodies of limited size, from servers that may be misconfigured or hostile."""

from __future__ import annotations

import httpx

from cortex_common.errors import UpstreamFailed

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Largest response of a gateway or a neuron; a snapshot of a large fleet has a few MiB."""

UNCOMPRESSED = {"accept-encoding": "identity"}
"""Request headers for an uncompressed response: a compressed one can expand a thousandfold."""


async def read_body(response: httpx.Response, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read the body of a streamed response.

    Raises:
        UpstreamFailed: it is larger than `max_bytes`, or compressed although `UNCOMPRESSED` was sent.
        httpx.HTTPError: the connection failed.
    """
    require_uncompressed(response)
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise UpstreamFailed(f"the response is larger than {max_bytes // 1024} KiB")
    return bytes(body)


def require_uncompressed(response: httpx.Response) -> None:
    """Check that the body was sent as it is.

    Raises:
        UpstreamFailed: it is compressed.
    """
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UpstreamFailed(
            f"the response is compressed ({coding[:40]}) although that was not requested"
        )
