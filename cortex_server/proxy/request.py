"""One inference request, from its head to the last byte of its response.

A state machine of plain calls, driven by the client's connection, by the engine's connection, and by a task only where
something must be waited for: a load, or a new connection.

::

    receive_all ──► routed ──► connecting ──► sent ──► responding ──► finished
                     │ ▲           │            │           │
                     ▼ │           ▼            ▼           ▼
                   waiting      another endpoint, before  error event, or a cut connection:
                   (a load)     the first byte only       never a clean-looking end

`_finish` runs exactly once, whatever happens: it decrements the instance's count of requests in flight.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from time import perf_counter

from cortex_common.errors import CortexError, MalformedBody, UpstreamFailed
from cortex_common.log import event
from cortex_common.schema.bounds import MAX_NAME_LENGTH
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_common.schema.requests import RequestState
from cortex_http.client import ClientRequest
from cortex_http.downstream import NULL_DOWNSTREAM, Downstream
from cortex_http.headers import Headers, content_length, is_event_stream, lines
from cortex_http.pool import ConnectError
from cortex_server.auth.admission_queue import queue_full
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.access_log import FinishedRequest, RequestRecord
from cortex_server.proxy.accounting import finish
from cortex_server.proxy.adapters.base import DialectAdapter
from cortex_server.proxy.cold_start import ColdStart
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.engine_address import EngineAddress
from cortex_server.proxy.errors import (
    body_is_compressed,
    body_too_large,
    connect_failed,
    model_name_too_long,
    model_not_allowed,
    redirected,
)
from cortex_server.proxy.headers import (
    client_headers,
    client_status,
    cors_headers,
    engine_request_head,
    error_headers,
    priority,
    request_id,
    retry_headers,
)
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.response.base import JSON_HEAD, STREAM_HEAD, EngineResponse
from cortex_server.proxy.response.body import LateError
from cortex_server.proxy.stream_fast_path import StreamFastPath
from cortex_server.proxy.trace_context import start_span

log = logging.getLogger("cortex.requests")

_NO_MODEL = ModelId("")

MAX_ATTEMPTS = 3
"""Instances that a request is sent to before the client gets an error."""


class ProxyRequest:
    """One inference request; both the client connection's handler and the engine connection's.

    Args:
        context: Shared state of the proxy.
        client: Where the response goes.
        head: Head of the request.

    Attributes:
        context: Shared state of the proxy.
        client: Where the response goes; discards everything once the request has finished.
        head: Head of the request.
        record: Facts and times for the access log.
        key: Key that it was admitted with.
        model: Model id, once known.
        endpoint: Instance that it was sent to last.
        adapter: Translates between the client and the engine, once the body has been read.
        upstream: The request to the engine, while it is in flight.
        response: The engine's response, once its head has arrived.
        opened: Whether the head of the response has been sent to the client.
        client_is_blocked: Whether the client does not read fast enough.
        events_seen: Number of the response's events when timeouts were last checked.
        commented_at: When a keep-alive comment was last sent, by the event loop's time.
        comments: Number of keep-alive comments sent.
        finished: Whether it has ended.
    """

    __slots__ = (
        "_attempted",
        "_body",
        "_body_size",
        "_cold_start",
        "_failure",
        "_inflight",
        "_retry_headers",
        "adapter",
        "client",
        "client_is_blocked",
        "commented_at",
        "comments",
        "context",
        "endpoint",
        "events_seen",
        "finished",
        "head",
        "key",
        "model",
        "opened",
        "record",
        "response",
        "upstream",
    )

    def __init__(
        self,
        context: ProxyContext,
        inflight: set[ProxyRequest],
        client: Downstream,
        head: RequestHead,
    ) -> None:
        headers, now = head.headers, context.loop.time()
        self.context = context
        self.client = client
        self.head = head
        self.record = RequestRecord(head.route, request_id(headers), now, now)
        self.key: Key | None = None
        self.model = _NO_MODEL
        self.endpoint: Endpoint | None = None
        self.adapter: DialectAdapter | None = None
        self.upstream: ClientRequest[EngineAddress] | None = None
        self.response: EngineResponse | None = None
        self.opened = False
        self.client_is_blocked = False
        self.events_seen = 0
        self.commented_at = now
        self.comments = 0
        self.finished = False
        self._body: list[bytes] = []
        self._body_size = 0
        self._cold_start: ColdStart | None = None
        self._attempted: frozenset[InstanceId] = frozenset()
        self._failure: CortexError | None = None  # of the last attempt
        self._retry_headers: Sequence[tuple[bytes, bytes]] = ()  # of an engine's error
        if context.spans is not None:
            self.record.span = start_span(headers.get(b"traceparent", b""))
        if context.settings.allowed_origins and (origin := headers.get(b"origin")) is not None:
            self.record.cors_headers = cors_headers(context.settings.allowed_origins, origin)
        self._inflight = inflight
        inflight.add(self)
        context.retries.earn()

    # -- for operators -----------------------------------------------------------------------

    @property
    def state(self) -> RequestState:
        """Current phase."""
        if self.finished:
            return RequestState.DONE
        if self._cold_start is not None:
            return RequestState.LOADING
        if self.endpoint is None:
            return RequestState.QUEUE
        return RequestState.PREFILL if self.record.first_byte is None else RequestState.DECODE

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt tokens, 0 until the engine reports them, and completion tokens so far."""
        response = self.response
        return response.token_counts()[:2] if response is not None else (0, 0)

    # -- from the client ---------------------------------------------------------------------

    def admit(self, length: int | None) -> None:
        """Check the key and the announced length of the body; to be called before anything else."""
        context = self.context
        try:
            self.key = context.access_control.admit(self.head.credentials, local=self.head.local)
            if len(self._inflight) > context.max_active:
                raise queue_full()
            if length is not None and length > context.max_body:
                raise body_too_large(context.max_body)
        except CortexError as failed:
            if self.key is None:
                self.record.rejected_key = context.access_control.key_name(self.head.headers)
            self.refuse(failed)

    def receive(self, data: bytes) -> None:
        """Collect a piece of the body."""
        self._body_size += len(data)
        self._body.append(data)
        if self._body_size > self.context.max_body:
            self._body.clear()
            self.refuse(body_too_large(self.context.max_body))

    def receive_all(self, body: bytes | None) -> None:
        """Find out where the complete request goes, and send it there."""
        began = perf_counter()
        if body is None:
            body = b"".join(self._body)
        self._body = []
        if self._enter_queue(body):
            self._send_or_load()
            self.context.metrics.overhead.observe(perf_counter() - began)

    def _enter_queue(self, body: bytes) -> bool:
        """Read the body and queue for admission; return whether the request was admitted immediately."""
        fleet, head, key = self.context.fleet, self.head, self.key
        assert key is not None
        try:
            stored = self.context.responses.of(key)
            adapter = self.adapter = head.route.read(head, self.record.ident, body, stored)
            name = adapter.name
            if len(name) > MAX_NAME_LENGTH:
                raise model_name_too_long()
            model = fleet.resolve_model(name)
            # Before the model is known to exist, which a key that may not use it does not learn.
            if key.terms.models and not key.allows_model(model or name, name):
                raise model_not_allowed(key, name)
            if model is None:
                raise fleet.model_not_found(name, key.allows_model)
            self.model = model
            rank = priority(head.headers) if key.terms.max_priority else 0
            return self.context.admission.enter(self, key, rank)
        except MalformedBody as failed:
            coding = head.headers.get(b"content-encoding")
            self.refuse(failed if coding is None else body_is_compressed(coding))
        except CortexError as failed:
            self.refuse(failed)
        return False

    def on_admitted(self) -> None:
        """Go on after waiting in the admission queue."""
        if not self.finished:
            self.record.queued_s = self.context.loop.time() - self.record.started
            self._send_or_load()

    def on_queue_timeout(self) -> None:
        """Refuse after waiting in the admission queue for too long."""
        self.refuse(queue_full())

    def client_blocked(self) -> None:
        """Stop reading from the engine because the client does not keep up."""
        self.client_is_blocked = True
        self.record.last_byte = self.context.loop.time()
        if self.upstream is not None:
            self.upstream.pause()

    def client_unblocked(self) -> None:
        """Read from the engine again."""
        self.client_is_blocked = False
        self.record.last_byte = self.context.loop.time()
        if self.upstream is not None:
            self.upstream.resume()

    def client_gone(self) -> None:
        """Abort what is in flight for a client that closed its connection."""
        if self.response is not None and self.response.complete:
            self._finish(None)  # many clients close as soon as they have read [DONE]
        elif not self.finished:
            self.context.metrics.disconnects += 1
            self._finish("client_disconnected")

    # -- choosing an instance ----------------------------------------------------------------

    def _send_or_load(self) -> None:
        """Send the request to a ready instance, or wait until there is one."""
        adapter = self.adapter
        assert adapter is not None
        endpoint, reason = None, b""
        candidates = self._candidates()
        if candidates:
            try:
                endpoint, reason = self.context.load_balancer.choose(
                    candidates, self.head.session, adapter
                )
            except CortexError as failed:
                self.refuse(failed)
                return
        local = adapter.local_response(endpoint.traits if endpoint is not None else None)
        if local is not None:
            self._respond_locally(local)
        elif endpoint is not None:
            if self._attempted:
                reason = b"retry"
            elif self.record.cold:
                reason = b"loaded"
            self.record.reason = reason
            self._send(endpoint)
        elif self._failure is not None:
            self.refuse(self._failure)
        else:
            self._wait_for_load()

    def _candidates(self) -> Sequence[Endpoint]:
        """Return the ready instances that have not been tried; none when no further attempt is allowed."""
        candidates = self.context.fleet.ready(self.model)
        if not self._attempted:
            return candidates
        candidates = [c for c in candidates if c.id not in self._attempted]
        if len(self._attempted) >= MAX_ATTEMPTS:
            return ()
        return candidates if candidates and self.context.retries.spend() else ()

    def _respond_locally(self, body: bytes) -> None:
        self.client.respond(200, JSON_HEAD + self.record.labels(self.endpoint), len(body))
        self.client.write(body)
        self.client.end()
        self._finish(None)

    def _wait_for_load(self) -> None:
        self._cold_start = ColdStart(
            self.context,
            self.model,
            self.record.ident.decode(),
            comment=self._comment_load if self.can_keep_alive else None,
            ready=self._load_ready,
            failed=self._load_failed,
        )

    def _load_ready(self) -> None:
        self._cold_start = None
        self.record.cold = True
        self.record.queued_s = self.context.loop.time() - self.record.started
        self._send_or_load()

    def _load_failed(self, error: CortexError) -> None:
        self._cold_start = None
        self.refuse(error)

    def _comment_load(self, progress: bytes) -> None:
        self.record.cold = True
        self.keep_alive(progress)

    # -- to the engine -----------------------------------------------------------------------

    def _send(self, endpoint: Endpoint) -> None:
        context, record, adapter = self.context, self.record, self.adapter
        assert adapter is not None
        try:
            model_config = context.fleet.model_config(self.model)
            body = adapter.engine_body(
                endpoint.served_as, model_config, endpoint.traits, endpoint.context
            )
        except CortexError as failed:
            self.refuse(failed)
            return
        self.endpoint = endpoint
        record.dropped = adapter.dropped
        context.fleet.begin_request(endpoint)
        address = context.addresses.find(endpoint.url)
        record.last_byte = context.loop.time()
        traceparent = record.engine_traceparent() or self.head.headers.get(b"traceparent")
        head = engine_request_head(
            address, adapter.path, self.head.forwarded, len(body), record.ident, traceparent
        )
        upstream = self.upstream = ClientRequest(
            context.pool, address, head, body, self, self._connect_failed
        )
        if self.client_is_blocked:
            upstream.pause()
        upstream.start()

    def _connect_failed(self, error: ConnectError) -> None:
        self._try_another(connect_failed(error, self.context.pool.connect_timeout_s))

    def _try_another(self, failure: CortexError) -> None:
        """Send the request to another instance, since no byte of a response has reached the client."""
        endpoint = self.endpoint
        assert endpoint is not None
        event(
            log,
            "instance_failed",
            logging.WARNING,
            request=self.record.ident.decode(),
            node=endpoint.node,
            instance=endpoint.id,
            reason=failure.message,
        )
        self.context.fleet.end_request(endpoint)
        self.context.fleet.record_failure(endpoint, failure.message)
        self.endpoint = self.upstream = None
        self._attempted |= {endpoint.id}
        self._failure = failure
        if endpoint.retries:
            self._send_or_load()
        else:
            self.refuse(failure)

    # -- from the engine: `ResponseHandler` ---------------------------------------------------

    def request_blocked(self) -> None:
        """Do nothing: the whole body is in memory already."""

    def request_unblocked(self) -> None:
        """Do nothing: the whole body is in memory already."""

    def response_head(self, status: int, headers: Headers) -> None:
        """Decide how the response is treated, and forward its head if it is the client's too."""
        if 300 <= status < 400:
            # Following it would send the key and the prompt to a server that no configuration names.
            assert self.upstream is not None
            assert self.endpoint is not None
            self.upstream.abort()
            self._try_another(redirected(self.endpoint.node, headers))
            return
        status = client_status(status)
        self.record.status = status
        assert self.adapter is not None
        streamed = status < 400 and is_event_stream(headers)
        if status >= 400:
            self._retry_headers = retry_headers(0, headers)
        response = self.response = self.adapter.response(status, streamed=streamed)
        if self.opened:
            if not streamed:
                self.response = LateError(status, self.adapter.error_event)
        elif response.forwards_head:
            kept = lines(client_headers(headers))
            self._open(status, kept, None if streamed else content_length(dict(headers)))

    def _open(self, status: int, head: bytes, length: int | None) -> None:
        """Send the head of the response, once."""
        if not self.opened:
            self.opened = True
            self.client.respond(status, head + self.record.labels(self.endpoint), length)

    def response_data(self, data: bytes) -> None:
        """Pass a piece of the body through the response, and send what comes of it."""
        record, response = self.record, self.response
        record.last_byte = now = self.context.loop.time()
        assert response is not None
        output = response.feed(data)
        if record.first_byte is None and (response.events or not data.startswith(b":")):
            record.first_byte = now  # comments only mean that the prompt is still being processed
        if output:
            if not self.opened:
                self._open(200, response.head, None)
            self.client.write(output)

    def response_flush(self) -> None:
        """Send what was written."""
        self.client.flush()

    def response_splice(self) -> StreamFastPath | None:
        """Take the fast path for the chunks that follow, where the stream allows it."""
        repair = self.response.repair if self.response is not None and self.opened else None
        envelope = repair.text_envelope if repair is not None else None
        transport = self.client.chunked_transport() if envelope is not None else None
        if repair is None or envelope is None or transport is None:
            return None
        assert self.endpoint is not None
        sizes = self.context.addresses.find(self.endpoint.url).size_lines
        return StreamFastPath(envelope, repair, transport, sizes)

    def response_end(self) -> None:
        """Send the rest of the response."""
        self.upstream = None
        response = self.response
        assert response is not None
        output = response.end()
        status = response.status
        if 400 <= status < 500:
            self.record.status = status
        streaming = self.opened
        if not streaming:
            head = JSON_HEAD
            if status >= 400:
                head += lines(retry_headers(status, self._retry_headers))
            self._open(status, head, len(output))
        if output:
            self.client.write(output)
        self._end_response(failed=streaming and response.error is not None)
        self._finish(response.error)

    def response_lost(self, reason: str) -> None:
        """Try another instance, or report that the response is incomplete."""
        assert self.endpoint is not None
        if self.record.status:
            self._break_off(UpstreamFailed(f"the engine broke off: {reason}"))
        else:
            self._try_another(UpstreamFailed(f"the engine on {self.endpoint.node}: {reason}"))

    def _break_off(self, error: CortexError) -> None:
        """End a response that has begun with an error."""
        response = self.response
        assert response is not None
        output, streaming = response.fail(error), self.opened
        if output is None:
            self.client.abort()
        else:
            self._open(response.status, JSON_HEAD, len(output))
            self.client.write(output)
            self._end_response(failed=streaming)
        self._finish(error.code)

    def _end_response(self, *, failed: bool) -> None:
        """End the response; `failed` says that it is a stream that ends with an error event."""
        if failed and self.adapter is not None and self.adapter.cuts_failed_streams:
            self.client.cut()
        else:
            self.client.end()

    # -- keeping alive and ending ------------------------------------------------------------

    @property
    def can_keep_alive(self) -> bool:
        """Whether the client gets comments while nothing else is sent."""
        streams = self.adapter is not None and self.adapter.stream
        return streams and self.head.headers.get(b"x-cortex-keep-alive") != b"off"

    def keep_alive(self, comment: bytes) -> None:
        """Send a comment, which clients skip, so that no proxy in between closes a silent connection."""
        assert self.adapter is not None
        self.comments += 1
        self.commented_at = self.context.loop.time()
        self._open(200, STREAM_HEAD, None)
        self.client.write(self.adapter.keep_alive(comment))
        self.client.flush()

    def refuse(self, error: CortexError) -> None:
        """Answer with an error; as an event when the client's stream has begun."""
        if self.finished:
            return
        adapter, streaming = self.adapter, self.opened
        if streaming and adapter is not None:
            self.client.write(adapter.error_event(error))
        else:
            if adapter is None:
                status, body = self.head.route.error_response(error, self.record.ident)
            else:
                status, body = adapter.error_response(error)
            head = JSON_HEAD + lines(error_headers(error)) + self.record.labels(self.endpoint)
            self.client.respond(status, head, len(body))
            self.client.write(body)
        self._end_response(failed=streaming)
        self._finish(error.code)

    def cut_off(self, error: CortexError) -> None:
        """End the request now with an error."""
        if self.record.status and not self.finished:
            self._break_off(error)
        else:
            self.refuse(error)

    def _finish(self, error: str | None) -> None:
        """Release everything and account for the request, once.

        Args:
            error: Code of what went wrong.
        """
        if self.finished:
            return
        self.finished = True
        record, now = self.record, self.context.loop.time()
        if self.model and self.endpoint is None and not self._attempted:
            record.queued_s = now - record.started
        if record.first_byte is not None and self.response is not None and not self.response.events:
            record.first_byte = now  # a response that arrives whole says nothing about speed
        self._inflight.discard(self)
        if self._cold_start is not None:
            self._cold_start.cancel()
            self._cold_start = None
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None
        self.context.admission.leave(self)
        response, key = self.response, self.key
        tokens_in, tokens_out, cached = (0, 0, 0) if response is None else response.token_counts()
        finished = FinishedRequest(
            record,
            now,
            time.time(),
            key.name if key else record.rejected_key,
            self.model,
            self.endpoint,
            tokens_in,
            tokens_out,
            error,
        )
        finish(self.context, finished, key, cached, response.repairs if response else None)
        self.client = NULL_DOWNSTREAM
