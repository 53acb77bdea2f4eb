"""The router of the gateway's API listener: which requests the proxy handles on the transport."""

from __future__ import annotations

from cortex_common.config.access import LimitsSection
from cortex_common.errors import envelope_bytes
from cortex_http.headers import Headers
from cortex_http.server_request import ServerRequest
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.errors import protocol_error
from cortex_server.proxy.inflight import InflightRequests
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.responses_websocket import ResponsesWebSocket, open_websocket
from cortex_server.proxy.routes import ROUTES, canonical_path

_WEBSOCKET_PATH = b"/v1/responses"


class InferenceRouter:
    """Handles POST requests to the inference routes, and the WebSocket of the Responses API.

    Args:
        context: Shared state of the proxy.
        inflight: The requests in flight.
    """

    def __init__(self, context: ProxyContext, inflight: InflightRequests) -> None:
        self._context = context
        self._inflight = inflight

    @property
    def limits(self) -> LimitsSection:
        """Current limits."""
        return self._context.limits

    def match(
        self, method: bytes, target: bytes, headers: Headers, peer: str | None
    ) -> RequestHead | None:
        """Return the head of an inference request; None for any other."""
        path, _, query = target.partition(b"?")
        if method != b"POST":
            return None
        route = ROUTES.get(path) or ROUTES.get(canonical_path(path.decode("latin-1")).encode())
        if route is None:
            return None
        return RequestHead.from_headers(route, query, headers, peer)

    def handle(self, request: ServerRequest, head: RequestHead) -> ProxyRequest:
        """Start handling a request."""
        handler = ProxyRequest(self._context, self._inflight.requests, request, head)
        handler.admit(request.length)
        return handler

    def match_websocket(
        self, target: bytes, headers: Headers, peer: str | None
    ) -> ResponsesWebSocket | None:
        """Return what handles a WebSocket on /v1/responses.

        Raises:
            UpgradeRejected: The client may not use it.
        """
        path, _, query = target.partition(b"?")
        if path != _WEBSOCKET_PATH:
            return None
        kept = [header for header in headers if header[0] != b"x-request-id"]
        head = RequestHead.from_headers(ROUTES[path], query, kept, peer)
        return open_websocket(self._context, self._inflight.requests, head)

    def error_body(self, status: int) -> bytes:
        """Return the body of a response to a request that the protocol rejects."""
        return envelope_bytes(protocol_error(status, self._context.limits.max_header_kb))
