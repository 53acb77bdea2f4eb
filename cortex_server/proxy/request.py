"""One inference request, from its head to the last byte of its response.

A state machine of plain calls, driven by the client's connection, by the engine's connection, and by a task only where
something must be waited for: a load, or a new connection.

::

    receive_all ──► routed ──► attempt ──► responding ──► finished
                     │ ▲           │            │
                     ▼ │           ▼            ▼
                   waiting      another      error event, or a cut connection:
                   (a load)     instance     never a clean-looking end

An `Attempt` sends the request to one instance. As long as the client has got nothing of an answer, a failed attempt is
followed by another one, on another instance. `_finish` runs exactly once, whatever happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from time import perf_counter

from cortex_common.errors import CortexError, MalformedBody
from cortex_common.log import event
from cortex_common.schema.bounds import MAX_NAME_LENGTH
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_common.schema.requests import RequestState
from cortex_http.downstream import NULL_DOWNSTREAM, Downstream
from cortex_http.headers import lines
from cortex_server.auth.admission_queue import queue_full
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.access_log import FinishedRequest, RequestRecord
from cortex_server.proxy.accounting import count_tokens, finish, record_outcome
from cortex_server.proxy.adapters.base import DialectAdapter
from cortex_server.proxy.adapters.request_body import require_one_model
from cortex_server.proxy.attempt import Attempt
from cortex_server.proxy.cold_start import ColdStart
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.errors import (
    body_is_compressed,
    body_too_large,
    model_name_too_long,
    model_not_allowed,
)
from cortex_server.proxy.headers import (
    client_status,
    cors_headers,
    error_headers,
    priority,
    request_id,
    retry_headers,
)
from cortex_server.proxy.public_errors import public_error, sees_internals
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.response.base import JSON_HEAD, STREAM_HEAD
from cortex_server.proxy.response.verdict import Fault, Rejection, find_fault
from cortex_server.proxy.trace_context import start_span

log = logging.getLogger("cortex.requests")

_NO_MODEL = ModelId("")

MAX_ATTEMPTS = 3
"""How often a request is sent to an instance before the client gets an error."""


class ProxyRequest:
    """One inference request; the handler of the client's connection.

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
        attempt: The attempt in progress.
        opened: Whether the head of the response has been sent to the client.
        client_is_blocked: Whether the client does not read fast enough.
        events_seen: Number of the response's events when timeouts were last checked.
        progressed_at: When that number last changed, by the event loop's time.
        commented_at: When a keep-alive comment was last sent, by the event loop's time.
        comments: Number of keep-alive comments sent.
        finished: Whether it has ended.
    """

    __slots__ = (
        "_attempted",
        "_attempts",
        "_body",
        "_body_size",
        "_cold_start",
        "_inflight",
        "_rejection",
        "adapter",
        "attempt",
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
        "progressed_at",
        "record",
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
        self.attempt: Attempt | None = None
        self.opened = False
        self.client_is_blocked = False
        self.events_seen = 0
        self.progressed_at = now
        self.commented_at = now
        self.comments = 0
        self.finished = False
        self._body: list[bytes] = []
        self._body_size = 0
        self._cold_start: ColdStart | None = None
        self._attempted: frozenset[InstanceId] = frozenset()
        self._attempts = 0
        self._rejection: Rejection | None = None  # of the last attempt
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
        response = self.attempt.response if self.attempt is not None else None
        if response is None:
            return 0, 0
        usage = response.usage
        return (0, response.output_tokens) if usage is None else usage.bounded_counts[:2]

    @property
    def content_sent(self) -> bool:
        """Whether the client has got something of an answer, besides keep-alive comments."""
        return self.attempt is not None and self.attempt.content_sent

    # -- from the client ---------------------------------------------------------------------

    def admit(self, length: int | None) -> None:
        """Check the key and the announced length of the body; to be called before anything else."""
        context = self.context
        try:
            self.key = context.access_control.admit(self.head.credentials, self.head.caller)
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
        try:
            if self._body_size + len(data) > self.context.max_body:
                raise body_too_large(self.context.max_body)
            self.context.bodies.take(len(data))
        except CortexError as failed:
            self._body.clear()
            self.refuse(failed)
            return
        self._body_size += len(data)
        self._body.append(data)

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
            stored = self.context.responses.of(key, head.connection)
            adapter = self.adapter = head.route.read(head, self.record.ident, body, stored)
            if key.terms.models and not head.form:
                require_one_model(body)
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
        """Continue after waiting in the admission queue."""
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
        if self.attempt is not None and self.attempt.upstream is not None:
            self.attempt.upstream.pause()

    def client_unblocked(self) -> None:
        """Read from the engine again."""
        self.client_is_blocked = False
        self.record.last_byte = self.context.loop.time()
        if self.attempt is not None and self.attempt.upstream is not None:
            self.attempt.upstream.resume()

    def client_gone(self) -> None:
        """Abort what is in flight for a client that closed its connection."""
        response = self.attempt.response if self.attempt is not None else None
        if response is not None and response.complete:
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
        try:
            if candidates:
                endpoint, reason = self.context.load_balancer.choose(
                    candidates, self.head.session, adapter
                )
            local = adapter.local_response(endpoint.traits if endpoint is not None else None)
        except CortexError as failed:
            self.refuse(failed)
            return
        if local is not None:
            self._respond_locally(local)
        elif endpoint is not None:
            if self._attempts:
                reason = b"retry"
            elif self.record.cold:
                reason = b"loaded"
            self.record.reason = reason
            self._send(endpoint)
        elif self._rejection is None:
            self._wait_for_load()
        elif self._can_wait_for_restart(self._rejection):
            self._attempted = frozenset()
            self._wait_for_load(self.endpoint)
        else:
            self._report(self._rejection)

    def _can_wait_for_restart(self, rejection: Rejection) -> bool:
        """Return whether the last attempt was lost with its engine, which its node or another may start again."""
        configured = self.context.fleet.model_config(self.model) is not None
        return rejection.unreachable and configured and self._attempts < MAX_ATTEMPTS

    def _candidates(self) -> Sequence[Endpoint]:
        """Return the ready instances that have not been tried; none when no further attempt is allowed."""
        candidates = self.context.fleet.ready(self.model)
        if not self._attempted:
            return candidates
        candidates = [c for c in candidates if c.id not in self._attempted]
        if self._attempts >= MAX_ATTEMPTS:
            return ()
        if self._rejection is not None and self._rejection.fault is Fault.LOST:
            return candidates  # the requests of a lost node are no additional load
        return candidates if candidates and self.context.retries.spend() else ()

    def _respond_locally(self, body: bytes) -> None:
        self.client.respond(200, JSON_HEAD + self.record.labels(self.endpoint), len(body))
        self.client.write(body)
        self.client.end()
        self._finish(None)

    def _wait_for_load(self, lost: Endpoint | None = None) -> None:
        self._cold_start = ColdStart(
            self.context,
            self.model,
            self.record.ident.decode(),
            comment=self._comment_load if self.can_keep_alive else None,
            ready=self._load_ready,
            failed=self._load_failed,
            lost=lost,
            for_operator=self._sees_internals,
        )

    def _load_ready(self) -> None:
        self._cold_start = None
        self.record.cold = True
        self.record.queued_s = self.context.loop.time() - self.record.started
        self._send_or_load()

    def _load_failed(self, error: CortexError) -> None:
        self._cold_start = None
        assert self.adapter is not None
        if not self._sees_internals:
            error = public_error(error, self.adapter.name, self.record.ident.decode())
        self.refuse(error)

    @property
    def _sees_internals(self) -> bool:
        assert self.key is not None
        return sees_internals(self.key, self.context.access_control)

    def _comment_load(self, progress: bytes) -> None:
        self.record.cold = True
        self.keep_alive(progress)

    # -- attempts: `AttemptOwner` ------------------------------------------------------------

    def _send(self, endpoint: Endpoint) -> None:
        context, adapter = self.context, self.adapter
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
        self.record.dropped = adapter.dropped
        self._attempts += 1
        context.fleet.begin_request(endpoint)
        attempt = self.attempt = Attempt(context, self, adapter, endpoint)
        attempt.start(body, paused=self.client_is_blocked)

    def open(self, status: int, head: bytes, length: int | None) -> None:
        """Send the head of the response, once."""
        if not self.opened:
            self.opened = True
            self.client.respond(status, head + self.record.labels(self.endpoint), length)

    def reject(self, rejection: Rejection, output: bytes = b"") -> None:
        """Try another instance, or report why there is no answer."""
        attempt, record = self.attempt, self.record
        assert attempt is not None
        endpoint = attempt.endpoint
        can_retry = (
            rejection.fault.is_retryable
            and endpoint.retries
            # Keep-alive comments have opened the client's stream, and this response has written to it since.
            and not (output and self.opened and attempt.shares_stream)
        )
        if rejection.fault.is_retryable:
            event(
                log,
                "instance_failed",
                logging.WARNING,
                request=record.ident.decode(),
                node=endpoint.node,
                instance=endpoint.id,
                reason=rejection.error.message,
            )
        self._end_attempt(rejection.fault, rejection.error)
        self._rejection = rejection
        if not can_retry:
            self._report(rejection, output)
            return
        record.status, record.first_byte = 0, None
        self._attempted |= {endpoint.id}
        self._send_or_load()

    def complete(self, output: bytes, failure: CortexError | None) -> None:
        """End the response."""
        if output:
            self.client.write(output)
        fault = None
        if failure is not None:
            assert self.adapter is not None
            fault = find_fault(failure, self.adapter.path)
        self._end_response(failed=failure is not None)
        self._finish(None if failure is None else failure.code, failure, fault)

    def break_off(self, output: bytes | None, error: CortexError, fault: Fault) -> None:
        """End a started response with an error."""
        if output is None:
            self.client.abort()
        else:
            self.client.write(output)
            self._end_response(failed=True)
        self._finish(error.code, error, fault)

    def _report(self, rejection: Rejection, output: bytes = b"") -> None:
        """Answer with the error of the last attempt."""
        adapter = self.adapter
        assert adapter is not None
        if self.opened:
            self.client.write(output or adapter.error_event(rejection.error))
            self._end_response(failed=True)
        elif rejection.status < 400:
            self.refuse(rejection.error)
        else:
            status, body = adapter.engine_error(rejection)
            head = JSON_HEAD + lines([*rejection.headers, *retry_headers(status, [])])
            head += self.record.labels(self.endpoint)
            self.client.respond(client_status(status), head, len(body))
            self.client.write(body)
            self.client.end()
            if status < 400:  # the adapter has an answer of its own
                self._finish(None)
        self._finish(
            f"engine_{rejection.status}" if rejection.status >= 400 else rejection.error.code
        )

    def _end_attempt(self, fault: Fault | None, error: CortexError | None) -> None:
        """Count the end of the attempt, and what it says about its instance."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        attempt.abort()
        if fault is None and not self.record.status:
            fault = Fault.GATEWAY  # the client left before an answer, which says nothing
        record_outcome(self.context.fleet, attempt.endpoint, fault, error)

    def _end_response(self, *, failed: bool) -> None:
        """End the response; `failed` says that it is a stream that ends with an error event."""
        if failed and self.adapter is not None and self.adapter.cuts_failed_streams:
            self.client.truncate()
        else:
            self.client.end()

    def skip_time(self, seconds: float) -> None:
        """Take time in which this process stood still out of the timeouts."""
        self.record.last_byte += seconds
        self.progressed_at += seconds

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
        self.open(200, STREAM_HEAD, None)
        self.client.write(self.adapter.keep_alive(comment))
        self.client.flush()

    def refuse(self, error: CortexError) -> None:
        """Answer with an error of the gateway; as an event when the client's stream has started."""
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

    def cut_off(self, error: CortexError, fault: Fault = Fault.GATEWAY) -> None:
        """End the request now with an error."""
        if self.finished:
            return
        if self.attempt is None or not self.attempt.content_sent:
            self._end_attempt(fault, error)
            self.refuse(error)
        else:
            self.attempt.fail(error, fault)

    def _finish(
        self,
        code: str | None,
        error: CortexError | None = None,
        fault: Fault | None = None,
    ) -> None:
        """Release everything and account for the request, once.

        Args:
            code: Code of what went wrong.
            error: What went wrong with the engine's answer.
            fault: Whose fault that is.
        """
        if self.finished:
            return
        self.finished = True
        record, now = self.record, self.context.loop.time()
        if self.model and self.endpoint is None:
            record.queued_s = now - record.started
        attempt = self.attempt
        response = attempt.response if attempt is not None else None
        if record.first_byte is not None and response is not None and not response.is_streamed:
            record.first_byte = now  # a response that arrives whole says nothing about speed
        self._inflight.discard(self)
        self.context.bodies.release(self._body_size)
        self._rejection = None  # its traceback refers to this
        if self._cold_start is not None:
            self._cold_start.cancel()
            self._cold_start = None
        tokens = count_tokens(attempt, self.adapter)
        self._end_attempt(fault, error)
        self.context.admission.leave(self)
        key = self.key
        finished = FinishedRequest(
            record,
            now,
            time.time(),
            key.name if key else record.rejected_key,
            self.model,
            self.endpoint,
            tokens,
            code,
        )
        finish(self.context, finished, key, response.repairs if response else None)
        self.client = NULL_DOWNSTREAM
