"""The token that guards every route of a neuron."""

from __future__ import annotations

import hmac

from cortex_common.errors import AuthenticationFailed


def check_token(token: str | None, authorization: bytes) -> None:
    """Check the Authorization header of a request.

    Args:
        token: Token of this neuron; None if it requires none.
        authorization: Value of the header; empty if there is none.

    Raises:
        AuthenticationFailed: The header does not carry the token.
    """
    if token is None or hmac.compare_digest(authorization, f"Bearer {token}".encode()):
        return
    reason = (
        "this is not the token of this neuron" if authorization else "this neuron needs its token"
    )
    raise AuthenticationFailed(
        f"{reason}: see token and token_file in neuron.toml, and in [[neurons]] of the gateway",
        hints=("send it as `Authorization: Bearer ...`",),
    )
