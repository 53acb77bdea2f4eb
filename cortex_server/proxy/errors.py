"""Errors that the proxy itself raises."""

from __future__ import annotations

from cortex_common.errors import (
    BadRequest,
    BodyTooLarge,
    CortexError,
    MalformedBody,
    PermissionDenied,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_common.schema.bounds import MAX_NAME_LENGTH
from cortex_http.headers import Headers
from cortex_http.pool import ConnectError, ConnectTimeout, OutOfResources
from cortex_server.auth.keys import Key
from cortex_server.proxy.response.verdict import Fault


class RequestTimedOut(CortexError):
    """The client took too long to send its request."""

    code = "request_timed_out"
    status = 408


class MethodNotAllowed(BadRequest):
    """The route exists, but not with this method; the response's Allow header lists those that it has."""

    code = "method_not_allowed"
    status = 405


class HeadTooLarge(BodyTooLarge):
    """The request's head exceeds the limit."""

    code = "head_too_large"
    status = 431


def protocol_error(status: int, max_header_kb: int) -> CortexError:
    """Return the error for a request that the HTTP protocol rejects.

    Args:
        status: 400, 408, 413, 431 or 500.
        max_header_kb: Limit of a head's size in KiB.
    """
    match status:
        case 400:
            return BadRequest("this is not HTTP/1.1")
        case 408:
            return RequestTimedOut("the request did not arrive in time")
        case 413:
            return BodyTooLarge("the body is larger than 1 MiB, which is the limit of this route")
        case 431:
            return HeadTooLarge(
                f"the request's head is larger than {max_header_kb} KiB",
                hints=["[limits] max_header_kb in cortex.toml sets the limit"],
            )
        case _:
            return CortexError("internal error")


def body_too_large(limit: int) -> BodyTooLarge:
    """Return the error for a body that exceeds the limit, in bytes."""
    return BodyTooLarge(
        f"the body is larger than {limit // (1024 * 1024)} MiB",
        hints=["[gateway] max_body_mb in cortex.toml sets the limit"],
        details={"limit_bytes": limit},
    )


def body_is_compressed(coding: bytes) -> MalformedBody:
    """Return the error for a body that could not be read because it is compressed."""
    return MalformedBody(
        f"the body is compressed ({coding.decode('latin-1')}); only uncompressed bodies are accepted",
        hints=["turn off the compression of requests in the client"],
    )


def model_name_too_long() -> BadRequest:
    """Return the error for a model name that no model can have; it is not repeated."""
    return BadRequest(f"`model` is longer than {MAX_NAME_LENGTH} characters", param="model")


def model_not_allowed(key: Key, model: str) -> PermissionDenied:
    """Return the error for a model that a key is not allowed to use."""
    return PermissionDenied(
        f"key {key.name!r} is not allowed to use model {model!r}",
        hints=[f"it is allowed to use {', '.join(key.terms.models)}"],
        param="model",
    )


def connect_failed(error: ConnectError, node: str, timeout_s: float) -> tuple[CortexError, Fault]:
    """Return the error for an engine that no connection can be made to, and whose fault it is.

    The address of the engine is not for clients.
    """
    if isinstance(error, OutOfResources):
        busy = Unavailable(
            f"the gateway can't open a connection: {error.reason}",
            hints=["check the limit of open files and the memory of the gateway's service"],
            retry_after=1.0,
        )
        return busy, Fault.GATEWAY
    if isinstance(error, ConnectTimeout):
        text = f"the engine on {node} did not accept a connection in {timeout_s:g} s"
        return UpstreamTimeout(text), Fault.ENGINE
    return UpstreamFailed(f"the engine on {node} can't be reached"), Fault.ENGINE


def redirected(node: str) -> UpstreamFailed:
    """Return the error for a server that redirects, as proxies do to HTTPS."""
    return UpstreamFailed(f"the server on {node} redirects instead of answering")


def redirect_target(headers: Headers) -> str:
    """Return where a response redirects to, for operators. A login's query, which can be a secret, is left out."""
    location = dict(headers).get(b"location", b"nowhere").decode("latin-1")
    return location.partition("?")[0]
