"""One request on its way: from its whole body to the last byte of its answer.

A state machine of plain calls, driven by the client's side (a face: `diverted` or `asgi`), by the engine's side
(`upstream`), and by a task only where something must be waited for: a load, or a new connection.

::

    start ──► routed ──► connecting ──► asked ──► answering ──► finished
                │ ▲          │            │            │
                ▼ │          ▼            ▼            ▼
              waiting      elsewhere, before the     error event, or a cut connection:
              (a load)     first byte only           never a clean-looking end

`finish` runs exactly once, whatever happens: there the instance's count goes down again.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

from cortex_common.errors import CortexError, MalformedBody, PermissionDenied
from cortex_common.log import event
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_common.schema.requests import RequestState
from cortex_http.downstream import NULL_DOWNSTREAM, Downstream
from cortex_http.headers import (
    cors_headers,
    engine_request,
    error_headers,
    lines,
    priority,
    request_id,
)
from cortex_server.auth.admission_queue import queue_full
from cortex_server.auth.keys import Key
from cortex_server.dataplane.reply import Reply
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.access_log import RequestRecord
from cortex_server.proxy.accounting import finish
from cortex_server.proxy.attempt import Attempt
from cortex_server.proxy.cold_start import ColdStart
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.response import JSON_HEAD
from cortex_server.proxy.trace_context import begin

if TYPE_CHECKING:
    from cortex_server.proxy.context import ProxyContext

log = logging.getLogger("cortex.requests")

_NO_MODEL = ModelId("")

MOST_TRIES = 3
"""Instances that one request is tried on before the client is told."""


class ProxyRequest(Reply):
    """One request.

    Args:
        plane: what all requests share.
        client: where the answer goes.
        asking: the head of the request.
    """

    __slots__ = (
        "_coldstart",
        "_failure",
        "_tried",
        "head",
        "key",
        "model",
    )

    def __init__(self, context: ProxyContext, client: Downstream, head: RequestHead) -> None:
        named = head.named
        now = context.loop.time()
        super().__init__(
            context, client, RequestRecord(head.route, request_id(named), now, now), named
        )
        self.head = head
        self.key: Key | None = None
        self.model = _NO_MODEL
        self._coldstart: ColdStart | None = None
        self._failure: CortexError | None = None
        self._tried: frozenset[InstanceId] = frozenset()
        if context.spans is not None:
            self.record.span = begin(named.get(b"traceparent", b""))
        if context.settings.allowed_origins and (origin := named.get(b"origin")) is not None:
            self.record.for_pages = cors_headers(context.settings.allowed_origins, origin)
        context.active.add(self)
        context.retries.earn()

    # -- for those who look on ---------------------------------------------------------------

    @property
    def state(self) -> RequestState:
        """How far it is."""
        if self.finished:
            return RequestState.DONE
        if self._coldstart is not None:
            return RequestState.LOADING
        if self.endpoint is None:
            return RequestState.QUEUE
        return RequestState.PREFILL if self.record.first_byte is None else RequestState.DECODE

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the prompt, once told, and of the answer so far."""
        answer = self._answer
        return answer.counted()[:2] if answer is not None else (0, 0)

    # -- from the client ---------------------------------------------------------------------

    def admit(self) -> bool:
        """Look at the key; to be called before all else. False when the caller has been sent away."""
        context = self.context
        try:
            self.key = context.access_control.admit(self.head.credentials, local=self.head.local)
            if len(context.active) > context.most:
                raise queue_full()
        except CortexError as failed:
            self.record.turned_away = context.access_control.key_name(self.named)
            self.refuse(failed)
            return False
        return True

    def start(self, body: bytes) -> None:
        """The request is whole: find out where it goes, and send it there."""
        began = perf_counter()
        fleet = self.context.fleet
        key = self.key
        assert key is not None
        try:
            head = self.head
            adapter = self._dialogue = head.route.read(head, self.record.ident, body)
            name = adapter.name
            model = fleet.known(name)
            if model is None:
                raise fleet.unknown(name)
            if key.terms.models and not key.allows_model(model, name):
                raise _not_for(key, name)
            self.model = model
            go = self.context.admission.enter(self, key, self._priority(key))
        except MalformedBody as failed:
            coding = self.named.get(b"content-encoding")
            self.refuse(failed if coding is None else _packed(coding))
            return
        except CortexError as failed:
            self.refuse(failed)
            return
        if go:
            self._next_target()
            self.context.metrics.overhead.observe(perf_counter() - began)

    def _priority(self, key: Key) -> int:
        return priority(self.named) if key.terms.max_priority else 0

    def on_admitted(self) -> None:
        """Start the request after it has waited in the queue."""
        if not self.finished:
            self.record.queued_s = self._loop.time() - self.record.started
            self._next_target()

    def on_queue_timeout(self) -> None:
        """Fail the request because it has waited in the queue for too long."""
        self.refuse(queue_full())

    def refuse(self, error: CortexError) -> None:
        """See `Reply`."""
        if self.finished:
            return
        adapter = self._dialogue
        if self._opened and adapter is not None:
            self._client.write(adapter.event(error))
        else:
            refusal = self.head.route.refusal(error, self.record.ident)
            status, body = refusal if adapter is None else adapter.refusal(error)
            head = JSON_HEAD + lines(error_headers(error)) + self.record.labels(self.endpoint)
            self._client.respond(status, head, len(body))
            self._client.write(body)
        self._client.end()
        self._finish(error.code)

    # -- finding an instance -----------------------------------------------------------------

    def _next_target(self) -> None:
        candidates = self.context.fleet.ready(self.model)
        if self._tried:
            candidates = [c for c in candidates if c.id not in self._tried]
            if len(self._tried) >= MOST_TRIES or (candidates and not self.context.retries.spend()):
                candidates = []
        adapter, endpoint, why = self._dialogue, None, b""
        assert adapter is not None
        if candidates:
            try:
                endpoint, why = self.context.chooser.choose(candidates, self.head.session, adapter)
            except CortexError as failed:
                self.refuse(failed)
                return
        alone = adapter.alone(endpoint.traits if endpoint is not None else None)
        if alone is not None:
            self._answer_alone(alone)
        elif endpoint is not None:
            self.record.reason = self._reason(why)
            self._send_to(endpoint)
        elif self._failure is not None:
            self.refuse(self._failure)
        else:
            self._load_first()

    def _answer_alone(self, body: bytes) -> None:
        self._client.respond(200, JSON_HEAD + self.record.labels(self.endpoint), len(body))
        self._client.write(body)
        self._client.end()
        self._finish(None)

    def _reason(self, why: bytes) -> bytes:
        if self._tried:
            return b"retry"
        return b"loaded" if self.record.cold else why

    def _load_first(self) -> None:
        self._coldstart = ColdStart(
            self.context,
            self.model,
            self.record.ident.decode(),
            comment=self._comment_load if self._may_keep_alive() else None,
            ready=self._loaded,
            failed=self._not_loaded,
        )

    def _loaded(self) -> None:
        self._coldstart = None
        self.record.cold = True
        self.record.queued_s = self._loop.time() - self.record.started
        self._next_target()

    def _not_loaded(self, error: CortexError) -> None:
        self._coldstart = None
        self.refuse(error)

    def _comment_load(self, how_far: bytes) -> None:
        self.record.cold = True
        self._keep_alive(how_far)

    # -- asking an engine --------------------------------------------------------------------

    def _send_to(self, endpoint: Endpoint) -> None:
        context, record, adapter = self.context, self.record, self._dialogue
        assert adapter is not None
        try:
            model_config = context.fleet.model_config(self.model)
            body = adapter.ask(endpoint.served_as, model_config, endpoint.traits, endpoint.context)
        except CortexError as failed:
            self.refuse(failed)
            return
        self.endpoint = endpoint
        record.dropped = adapter.dropped
        context.fleet.acquire(endpoint)
        address = context.pool.endpoint(endpoint.url)
        record.last_byte = self._loop.time()
        traced = record.asked() or self.named.get(b"traceparent")
        head = engine_request(
            address, adapter.path, self.head.passed, len(body), record.ident, traced
        )
        attempt = Attempt(context.pool, endpoint, address, head, body, self, self._elsewhere)
        self._attempt = attempt
        if self._full:
            attempt.pause()
        attempt.start()

    def _elsewhere(self, failure: CortexError) -> None:
        """See `Reply`."""
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
        self.context.fleet.release(endpoint)
        self.context.fleet.failed(endpoint, failure.message)
        self.endpoint = self._attempt = None
        self._tried |= {endpoint.id}
        self._failure = failure
        if endpoint.retries:
            self._next_target()
        else:
            self.refuse(failure)

    # -- the end -----------------------------------------------------------------------------

    def _finish(self, error: str | None) -> None:
        """See `Reply`."""
        if self.finished:
            return
        self.finished = True
        record, answer, now = self.record, self._answer, self._loop.time()
        if self.model and self.endpoint is None and not self._tried:
            record.queued_s = now - record.started
        if record.first_byte is not None and answer is not None and not answer.events:
            record.first_byte = now  # of an answer that came as a whole no speed can be told
        self.context.active.discard(self)
        if self._coldstart is not None:
            self._coldstart.cancel()
            self._coldstart = None
        if self._attempt is not None:
            self._attempt.abort()
            self._attempt = None
        self.context.admission.leave(self)
        finish(
            self.context,
            record,
            now,
            key=self.key,
            model=self.model,
            endpoint=self.endpoint,
            answer=answer,
            error=error,
        )
        self._client = NULL_DOWNSTREAM


def _packed(coding: bytes) -> MalformedBody:
    return MalformedBody(
        f"the body comes packed ({coding.decode('latin-1')}), and only plain bodies are read here",
        hints=["turn the compression of requests off in the client"],
    )


def _not_for(key: Key, model: str) -> PermissionDenied:
    return PermissionDenied(
        f"key {key.name!r} may not use model {model!r}",
        hints=[f"it may use {', '.join(key.terms.models)}"],
        param="model",
    )
