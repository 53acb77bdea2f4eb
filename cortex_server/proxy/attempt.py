"""One attempt at a request: it is sent to one instance, and the answer is received, judged and forwarded.

Whether the answer is usable is decided before its first byte goes to the client: by its status, its content coding and
its first bytes, or, for an answer that the client gets in one piece, once it is complete. An answer that is not usable
becomes a `Rejection`, with which the request goes to another instance or ends.
"""

from __future__ import annotations

import logging
from typing import Protocol

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_common.log import event
from cortex_common.schema.instances import RELAY_ERROR_HEADER
from cortex_common.sse import EventTooLong
from cortex_http.client import ClientRequest
from cortex_http.downstream import Downstream
from cortex_http.headers import Headers, content_length, lines
from cortex_http.pool import ConnectError
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.access_log import RequestRecord
from cortex_server.proxy.adapters.base import DialectAdapter
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.engine_address import EngineAddress
from cortex_server.proxy.errors import connect_failed, redirect_target, redirected
from cortex_server.proxy.headers import (
    client_headers,
    client_status,
    engine_request_head,
    retry_headers,
)
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.body import ErrorBody
from cortex_server.proxy.response.content_coding import Decoder, find_decoder
from cortex_server.proxy.response.first_bytes import FirstBytes, Format
from cortex_server.proxy.response.verdict import (
    Fault,
    Rejection,
    find_fault,
    retry_after_s,
)
from cortex_server.proxy.stream_fast_path import StreamFastPath

log = logging.getLogger("cortex.requests")


class AttemptOwner(Protocol):
    """The request that is attempted.

    Attributes:
        client: Where the response goes.
        head: Head of the request.
        record: Facts and times for the access log.
    """

    client: Downstream
    head: RequestHead
    record: RequestRecord

    def open(self, status: int, head: bytes, length: int | None) -> None:
        """Send the head of the response, unless keep-alive comments have opened it."""

    def reject(self, rejection: Rejection, output: bytes = b"") -> None:
        """Continue without an answer: nothing of one has been sent.

        Args:
            rejection: Why there is none.
            output: How the client's stream ends if it has been opened; empty if that is left to the request.
        """

    def complete(self, output: bytes, failure: CortexError | None) -> None:
        """End the response.

        Args:
            output: The rest of it.
            failure: Why it is incomplete, which the output says.
        """

    def break_off(self, output: bytes | None, error: CortexError, fault: Fault) -> None:
        """End a started response that can't be completed; see `EngineResponse.fail`."""


class Attempt:
    """One attempt; the handler of the engine's connection.

    Args:
        context: Shared state of the proxy.
        owner: The request.
        adapter: Translates between the client and the engine.
        endpoint: Instance that it is sent to.

    Attributes:
        endpoint: Instance that it is sent to.
        upstream: The request to the engine, while it is in flight.
        response: Converts the engine's response, once it is known what it is.
        content_sent: Whether the client has got something of the response.
    """

    __slots__ = (
        "_adapter",
        "_context",
        "_decoder",
        "_first",
        "_headers",
        "_owner",
        "_status",
        "content_sent",
        "endpoint",
        "response",
        "upstream",
    )

    def __init__(
        self,
        context: ProxyContext,
        owner: AttemptOwner,
        adapter: DialectAdapter,
        endpoint: Endpoint,
    ) -> None:
        self.endpoint = endpoint
        self.upstream: ClientRequest[EngineAddress] | None = None
        self.response: EngineResponse | None = None
        self.content_sent = False
        self._context = context
        self._owner = owner
        self._adapter = adapter
        self._first: FirstBytes | None = None
        self._decoder: Decoder | None = None
        self._status = 0
        self._headers: Headers = []

    @property
    def shares_stream(self) -> bool:
        """Whether the response writes to the client's stream; see `EngineResponse`."""
        return self.response is not None and self.response.shares_stream

    @property
    def was_sent(self) -> bool:
        """Whether the engine has got the request."""
        return self._status > 0 or (self.upstream is not None and self.upstream.connected)

    def start(self, body: bytes, *, paused: bool) -> None:
        """Send the request.

        Args:
            body: Body for the engine.
            paused: Whether nothing is to be read from the engine yet.
        """
        context, owner, record = self._context, self._owner, self._owner.record
        address = context.addresses.find(self.endpoint.url, self.endpoint.api_key)
        record.last_byte = context.loop.time()
        traceparent = record.engine_traceparent() or owner.head.headers.get(b"traceparent")
        head = engine_request_head(
            address, self._adapter.path, owner.head.forwarded, len(body), record.ident, traceparent
        )
        upstream = self.upstream = ClientRequest(
            context.pool, address, head, body, self, self._connect_failed
        )
        if paused:
            upstream.pause()
        upstream.start()

    def abort(self) -> None:
        """Cancel the request to the engine."""
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None

    def end_early(self) -> None:
        """Take a response as complete although the engine has not ended it."""
        if self.upstream is not None:
            self.upstream.abort()
        self.response_end()

    def fail(self, error: CortexError, fault: Fault, *, unreachable: bool = False) -> None:
        """End the attempt with an error: with a rejection if nothing of a response has been sent."""
        self.abort()
        if self.content_sent:
            assert self.response is not None
            self._owner.break_off(self.response.fail(error), error, fault)
        else:
            self._owner.reject(Rejection(error, fault, unreachable=unreachable))

    def _connect_failed(self, error: ConnectError) -> None:
        self._log("connect_failed", address=error.where, reason=error.reason)
        timeout_s = self._context.pool.connect_timeout_s
        failure, fault = connect_failed(error, self.endpoint.node, timeout_s)
        self.fail(failure, fault, unreachable=True)

    def _log(self, name: str, **details: str) -> None:
        """Log what operators learn of a failure, and clients do not."""
        endpoint = self.endpoint
        ident = self._owner.record.ident.decode()
        place = {"request": ident, "node": endpoint.node, "instance": endpoint.id}
        event(log, name, logging.WARNING, **place, **details)

    # -- from the engine: `ResponseHandler` ---------------------------------------------------

    def request_blocked(self) -> None:
        """Do nothing: the whole body is in memory already."""

    def request_unblocked(self) -> None:
        """Do nothing: the whole body is in memory already."""

    def response_head(self, status: int, headers: Headers) -> None:
        """Judge the status and the headers."""
        self._status, self._headers = status, headers
        if 300 <= status < 400:
            # Following it would send the key and the prompt to a server that no configuration names.
            self._log("engine_redirected", location=redirect_target(headers))
            self.fail(redirected(self.endpoint.node), Fault.ENGINE)
            return
        self._owner.record.status = status
        kind = b""
        for name, value in headers:
            if name == b"content-type":
                kind = value.lower()
            elif name == b"content-encoding" and not self._find_decoder():
                return
        if 200 <= status < 300:
            self._first = FirstBytes(kind, generates=self._adapter.generates)
        else:
            self.response = ErrorBody(status, retry_after_s(headers))

    def _find_decoder(self) -> bool:
        """Prepare for a compressed body; return whether it can be decoded."""
        try:
            self._decoder = find_decoder(self._headers)
        except CortexError as failed:
            self.fail(failed, Fault.ENGINE)
            return False
        return True

    def response_data(self, data: bytes) -> None:
        """Pass a piece of the body through the response, and send what comes of it."""
        owner, response = self._owner, self.response
        record = owner.record
        record.last_byte = now = self._context.loop.time()
        try:
            if self._decoder is not None:
                data = self._decoder.decode(data)
            if response is None:
                assert self._first is not None
                data = self._first.feed(data)
                response = self._choose_response(self._first.format)
                if response is None:
                    return
            if record.first_byte is None:
                record.first_byte = now
            output = response.feed(data)
        except Exception as failed:  # noqa: BLE001 - whatever an engine sends, its client must get an answer
            self._fail_in_body(failed)
            return
        if output:
            if not self.content_sent:
                self._begin(response)
            owner.client.write(output)

    def _choose_response(self, body_format: Format | None) -> EngineResponse | None:
        """Return the response for a body; None while its format is not known."""
        if body_format is None:
            return None
        if body_format is Format.ERROR:
            self.response = ErrorBody(self._status)
        else:
            self.response = self._adapter.response(body_format)
        return self.response

    def _begin(self, response: EngineResponse) -> None:
        """Send the head of a response whose content begins."""
        self.content_sent = True
        if not response.forwards_head:
            self._owner.open(200, response.head, None)
            return
        length = None if self._decoder is not None else content_length(dict(self._headers))
        self._owner.open(client_status(self._status), lines(client_headers(self._headers)), length)

    def _fail_in_body(self, failed: Exception) -> None:
        """End the attempt because its body can't be used, or because of a mistake in this program."""
        if isinstance(failed, CortexError):
            self.fail(failed, find_fault(failed, self._adapter.path))
        elif isinstance(failed, EventTooLong):
            self.fail(UpstreamFailed(f"the engine's stream: {failed}"), Fault.ENGINE)
        else:
            log.error("response_not_processed", exc_info=failed)
            error = UpstreamFailed("the gateway could not process the engine's answer; see its log")
            self.fail(error, Fault.GATEWAY)

    def response_flush(self) -> None:
        """Send what was written."""
        self._owner.client.flush()

    def response_splice(self) -> StreamFastPath | None:
        """Take the fast path for the chunks that follow, where the stream allows it."""
        response = self.response
        if response is None or not self.content_sent or self._decoder is not None:
            return None
        repair = response.repair
        envelope = repair.text_envelope if repair is not None else None
        transport = self._owner.client.chunked_transport() if envelope is not None else None
        if repair is None or envelope is None or transport is None:
            return None
        sizes = self._context.addresses.find(self.endpoint.url, self.endpoint.api_key).size_lines
        return StreamFastPath(envelope, repair, transport, sizes)

    def response_end(self) -> None:
        """Send the rest of the response, or reject it."""
        self.upstream = None
        try:
            output, failure = self._end_body()
        except Exception as failed:  # noqa: BLE001 - as in `response_data`
            self._fail_in_body(failed)
            return
        response = self.response
        assert response is not None
        if failure is not None and not self.content_sent:
            self._owner.reject(self._rejection(response, failure), output)
            return
        if not self.content_sent:
            self._owner.open(200, response.head, len(output))
        self._owner.complete(output, failure)

    def _end_body(self) -> tuple[bytes, CortexError | None]:
        """Return the rest for the client, and what is wrong with the response."""
        output = b""
        if self._decoder is not None:
            self._decoder.end()
        response = self.response
        if response is None:
            assert self._first is not None
            rest = self._first.end()
            response = self._choose_response(self._first.format)
            assert response is not None  # the end of a body settles its format
            output = response.feed(rest)
            if output:
                self._begin(response)
        return output + response.end(), response.failure

    def _rejection(self, response: EngineResponse, failure: CortexError) -> Rejection:
        if not isinstance(response, ErrorBody) or self._status < 400:
            return Rejection(failure, find_fault(failure, self._adapter.path), 200)
        fault = find_fault(failure, self._adapter.path, self._status)
        from_relay = any(name == RELAY_ERROR_HEADER for name, _ in self._headers)
        return Rejection(
            failure,
            fault,
            self._status,
            response.body,
            retry_headers(0, self._headers),
            unreachable=from_relay and not self._context.fleet.is_upstream(self.endpoint.node),
        )

    def response_lost(self, reason: str) -> None:
        """Report that the engine is gone, or that the response is incomplete."""
        node = self.endpoint.node
        text = (
            f"the engine broke off: {reason}" if self._status else f"the engine on {node}: {reason}"
        )
        self.upstream = None
        is_lost = self._context.fleet.is_unreachable(node)
        self.fail(UpstreamFailed(text), Fault.LOST if is_lost else Fault.ENGINE, unreachable=True)
