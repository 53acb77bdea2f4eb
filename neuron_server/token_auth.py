"""The token that guards every route of a neuron: where it comes from, and the check of each request."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_common.config.neuron import NeuronSection
from cortex_common.config.secrets import read_secret
from cortex_common.errors import AuthenticationFailed, ConfigError, CortexError, envelope
from cortex_common.log import event
from cortex_common.net.runtime_dir import create_runtime_dir, neuron_token_file, write_secret
from cortex_common.net.state_dir import state_dir_error
from cortex_common.net.trusted_hosts import TrustedHosts

log = logging.getLogger(__name__)

_FILE_NAME = "token"
_PREFIX = "ctn_"
"""Lets people and secret scanners recognize a token of a neuron."""

_GROUP_READABLE = 0o640
"""Mode of the token in the unit's runtime directory, which only the neuron's group can enter: gateways are members."""


def load_token(section: NeuronSection, environ: Mapping[str, str]) -> str:
    """Return the neuron's token: the configured one, or else its own, which is created at the first start.

    Args:
        section: the [neuron] settings; its state_dir must exist.
        environ: environment of the process.

    Raises:
        ConfigError: a file can't be read or written.
    """
    configured = read_secret(section.token, section.token_file, environ)
    if configured is not None:
        return configured
    path = own_token_file(section)
    try:
        with suppress(FileNotFoundError):
            if token := path.read_text(encoding="utf-8").strip():
                path.chmod(0o600)
                return token
        token = _PREFIX + secrets.token_urlsafe(32)
        write_secret(path, token)
    except (OSError, UnicodeDecodeError) as error:
        failure = error if isinstance(error, OSError) else OSError("it is not a token")
        raise state_dir_error(path, "neuron", failure) from error
    event(
        log,
        "token_created",
        file=path,
        hint="gateways on other hosts need it: copy it there, and set token_file in [[neurons]] to the copy",
    )
    return token


def own_token_file(section: NeuronSection) -> Path:
    """Return the file of the token that the neuron creates."""
    return section.state_dir.absolute() / _FILE_NAME


def publish_token(port: int, token: str, environ: Mapping[str, str]) -> Path | None:
    """Write the token to where gateways on this host find it, and return the file; None, logged, if that fails."""
    try:
        path = create_runtime_dir(environ) / neuron_token_file(port)
        write_secret(path, token, _GROUP_READABLE if "RUNTIME_DIRECTORY" in environ else 0o600)
    except (ConfigError, OSError) as error:
        hint = "gateways on this host need token_file in [[neurons]], too"
        event(log, "token_not_published", logging.WARNING, reason=error, hint=hint)
        return None
    return path


def check_token(token: str, authorization: bytes) -> None:
    """Check the Authorization header of a request.

    Args:
        token: Token of this neuron.
        authorization: Value of the header; empty if there is none.

    Raises:
        AuthenticationFailed: The header does not carry the token.
    """
    if hmac.compare_digest(authorization, f"Bearer {token}".encode()):
        return
    reason = (
        "this is not the token of this neuron" if authorization else "this neuron needs its token"
    )
    raise AuthenticationFailed(
        f"{reason}: see token_file in neuron.toml and in [[neurons]] of the gateway",
        hints=(
            "send it as `Authorization: Bearer ...`",
            "unless neuron.toml sets one, it is in the file `token` of the neuron's state_dir",
        ),
    )


def check_request(trusted: TrustedHosts, token: str, headers: Mapping[bytes, bytes]) -> None:
    """Check who sent a request, from its head alone.

    Args:
        trusted: Names of this host.
        token: Token of this neuron.
        headers: Headers by name in lower case.

    Raises:
        PermissionDenied: A web page caused it, or Host names another host.
        AuthenticationFailed: It does not carry the token.
    """
    host = headers.get(b"host")
    trusted.check_page(host, headers.get(b"origin"), headers.get(b"sec-fetch-site"))
    trusted.check_host(host)
    check_token(token, headers.get(b"authorization", b""))


class TokenMiddleware:
    """ASGI middleware that checks every request before anything else looks at it or reads its body.

    Args:
        app: the application to protect.
        trusted: names of this host.
        token: token of this neuron.
    """

    def __init__(self, app: ASGIApp, trusted: TrustedHosts, token: str) -> None:
        self._app = app
        self._trusted = trusted
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":
            try:
                check_request(self._trusted, self._token, dict(scope["headers"]))
            except CortexError as error:
                # Closed, because the rest of the connection can be a body that no one reads.
                headers = {"connection": "close", "www-authenticate": "Bearer"}
                response = JSONResponse(envelope(error), status_code=error.status, headers=headers)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
