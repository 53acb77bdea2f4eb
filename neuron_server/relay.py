"""The relay: forwards inference requests to engines, for clients that can't reach this host's loopback interface."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote_to_bytes

from cortex_common.errors import (
    BadRequest,
    CortexError,
    Unavailable,
    UpstreamFailed,
    envelope_bytes,
)
from cortex_common.log import event as log_event
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_common.schema.instances import RELAY_ERROR_HEADER, InstanceId, InstanceState
from cortex_http.address import Address, parse_url
from cortex_http.downstream import Downstream
from cortex_http.forward import Forward, request_head
from cortex_http.headers import FRAMING, HOP_BY_HOP, Headers, lines
from cortex_http.pool import ConnectError, ConnectionPool, OutOfResources
from cortex_http.routing import Limits
from cortex_http.server_request import NULL_HANDLER, RequestHandler, ServerRequest
from neuron_server.harness.probe import engine_tls
from neuron_server.runtime import Runtime
from neuron_server.token_auth import check_request

log = logging.getLogger(__name__)

_PREFIX = b"/engines/"

_METHODS = frozenset({b"GET", b"POST", b"DELETE"})

_ID_HEADER = b"x-request-id"

_NOT_TO_ENGINE = (
    HOP_BY_HOP | FRAMING | {b"authorization", b"expect", b"host", b"x-conversation-id", _ID_HEADER}
)
"""Headers that are not forwarded with the others: hop-by-hop headers, the token, which is the neuron's, and
X-Conversation-Id, which makes llama-server continue to generate after a disconnect. The request id is kept apart."""

_CALLER = frozenset({b"authorization", b"host", b"origin", b"sec-fetch-site"})
"""Headers that show who sent a request."""

_CONNECT_TIMEOUT_S = 5.0

_PROBE_TIMEOUT_S = 1.0

_REACHABLE = frozenset({InstanceState.READY, InstanceState.DRAINING})

_MAX_ADDRESSES = 1024

_REJECTIONS = {
    400: "this is not HTTP/1.1",
    408: "the request did not arrive in time",
    413: "the request's body is too large",
    431: "the request's head is too large",
}


@dataclass(frozen=True, slots=True)
class RelayHead:
    """The head of a request to `/engines/{instance}/...`.

    Attributes:
        method: HTTP method.
        instance: Id of the instance.
        target: Path and query at the engine.
        header_lines: Headers that the engine gets, as lines, without the request id.
        request_id: Line of the request id; empty if there is none.
        caller: Headers that show who sent it, by name.
    """

    method: bytes
    instance: str
    target: bytes
    header_lines: bytes
    request_id: bytes
    caller: Mapping[bytes, bytes]


class Relay:
    """Router of the requests that are forwarded to engines.

    Args:
        runtime: Runtime of the neuron.
        limits: Limits of connections.
        trusted: Names of this host.

    Attributes:
        id_header: Last header of a gateway's requests, which differ in nothing else.
    """

    id_header = _ID_HEADER

    def __init__(self, runtime: Runtime, limits: Limits, trusted: TrustedHosts) -> None:
        self.limits = limits
        self._runtime = runtime
        self._trusted = trusted
        self._pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=_CONNECT_TIMEOUT_S)
        self._addresses: dict[str, Address] = {}
        self._tls = engine_tls(runtime.config.harnesses)
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Close idle connections to engines."""
        self._pool.close()

    def match(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        peer: str | None,  # noqa: ARG002 - part of Router
    ) -> RelayHead | None:
        """Return the head of a request for an engine; None for any other."""
        if not target.startswith(_PREFIX) or method not in _METHODS:
            return None
        instance, slash, rest = target.removeprefix(_PREFIX).partition(b"/")
        if not slash:
            return None
        return RelayHead(
            method,
            unquote_to_bytes(instance).decode("utf-8", "replace"),
            slash + rest,
            lines([header for header in headers if header[0] not in _NOT_TO_ENGINE]),
            lines([header for header in headers if header[0] == _ID_HEADER]),
            {name: value for name, value in headers if name in _CALLER},
        )

    def with_id(self, head: RelayHead, value: bytes) -> RelayHead:
        """Return the same head with another request id."""
        return RelayHead(
            head.method,
            head.instance,
            head.target,
            head.header_lines,
            b"%b: %b\r\n" % (_ID_HEADER, value),
            head.caller,
        )

    def handle(self, request: ServerRequest, head: RelayHead) -> RequestHandler:
        """Forward a request, or refuse it before its body is read."""
        try:
            check_request(self._trusted, self._runtime.token, head.caller)
            instance = self._runtime.instances.by_instance_id(head.instance)
            if instance.state not in _REACHABLE:
                raise Unavailable(f"instance {instance.id} is {instance.state}", retry_after=1.0)
        except CortexError as error:
            _refuse(request, error)
            return NULL_HANDLER
        address = self._address(self._runtime.engine_url(instance))
        self._runtime.inflight.begin_relayed(instance.id)
        key = self._runtime.keys.get(instance.id)
        authorization = b"" if key is None else b"authorization: Bearer %b\r\n" % key.encode()
        return Forward(
            request,
            self._pool,
            address,
            request_head(
                head.method,
                address.prefix + head.target,
                address.authority,
                head.header_lines + authorization + head.request_id,
                request.length,
            ),
            on_error=self._on_error,
            on_end=partial(self._on_end, instance.id),
        )

    def error_body(self, status: int) -> bytes:
        """Return the body of a response to a request that the protocol rejects."""
        return envelope_bytes(BadRequest(_REJECTIONS.get(status, "the request failed")))

    def _address(self, url: str) -> Address:
        found = self._addresses.get(url)
        if found is None:
            if len(self._addresses) >= _MAX_ADDRESSES:
                self._addresses.clear()
            parsed = parse_url(url)
            tls = self._tls if parsed.https and isinstance(self._tls, ssl.SSLContext) else None
            found = self._addresses[url] = Address(
                parsed.host, parsed.port, parsed.prefix, parsed.authority, tls, parsed.uds
            )
        return found

    def _on_error(self, forward: Forward[Address], reason: str | ConnectError) -> None:
        """Answer a request that got no response."""
        failure = _failure(reason)
        if forward.uploaded or isinstance(reason, OutOfResources):
            forward.refuse(*_error_response(failure))
            return
        task = asyncio.get_running_loop().create_task(self._refuse_upload(forward, failure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refuse_upload(self, forward: Forward[Address], failure: CortexError) -> None:
        """Answer a request whose engine closed the connection while the body was being sent.

        Engines refuse a route that they lack, or a size, without reading on, and their response is lost with the
        connection. That does not mean that an engine that keeps listening has failed, as a 502 would.
        """
        if await _is_listening(forward.address):
            failure = BadRequest(
                "the engine closed the connection before it had read the request's body",
                hints=["it may lack this route, or not accept bodies of this size"],
            )
        if not forward.finished:
            forward.refuse(*_error_response(failure))

    def _on_end(self, instance: InstanceId, reason: str | None) -> None:
        self._runtime.inflight.end_relayed(instance)
        if reason is not None:
            log_event(
                log, "response_interrupted", logging.WARNING, instance=instance, reason=reason
            )


async def _is_listening(address: Address) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            if address.uds is not None:
                _, writer = await asyncio.open_unix_connection(address.uds)
            else:
                _, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _failure(reason: str | ConnectError) -> CortexError:
    """Return the error for a request that got no response; the engine is not to blame for this host's limits."""
    if isinstance(reason, OutOfResources):
        return Unavailable(
            f"this node can't open a connection: {reason.reason}",
            hints=["check the limit of open files and the memory of the neuron's service"],
            retry_after=1.0,
        )
    return UpstreamFailed(f"the engine broke off: {reason}")


def _error_response(error: CortexError) -> tuple[int, bytes, bytes]:
    headers = [(b"content-type", b"application/json")]
    if not isinstance(error, BadRequest):
        # No engine answered, so that the gateway may ask another one as if it had not reached this one.
        headers.append((RELAY_ERROR_HEADER, error.code.encode()))
    if error.retry_after:
        headers.append((b"retry-after", b"%d" % round(error.retry_after)))
    return error.status, lines(headers), envelope_bytes(error)


def _refuse(client: Downstream, error: CortexError) -> None:
    status, header_lines, body = _error_response(error)
    client.respond(status, header_lines, len(body))
    client.write(body)
    client.end()
