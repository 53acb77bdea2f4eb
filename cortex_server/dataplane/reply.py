"""The way back: from the first byte of an engine to the last one that its client gets."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cortex_common.errors import CortexError, UpstreamFailed, UpstreamTimeout
from cortex_common.log import event
from cortex_http.client import Headers
from cortex_http.downstream import Downstream
from cortex_http.headers import NOT_TO_CLIENT, content_length, is_event_stream, lines, retry_headers
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.access_log import RequestRecord
from cortex_server.proxy.adapter import DialectAdapter
from cortex_server.proxy.attempt import Attempt
from cortex_server.proxy.response import JSON_HEAD, STREAM_HEAD, EngineResponse, LateError
from cortex_server.proxy.stream_fast_path import SizeLines, StreamFastPath

if TYPE_CHECKING:
    from cortex_server.proxy.context import ProxyContext

log = logging.getLogger("cortex.requests")

_MOVED, _REFUSED = 300, 400

LINGER_S = 2.0
"""Seconds to wait for usage after a translated stream's finish reason; its client waits for the end meanwhile."""


class Reply(ABC):
    """The half of an `Exchange` that hears the engine and tells the client.

    Attributes:
        plane: what all requests share.
        trace: what is remembered of the request.
        named: its headers by name.
        target: the instance that has it.
        finished: it is over.
    """

    __slots__ = (
        "_answer",
        "_attempt",
        "_client",
        "_dialogue",
        "_events",
        "_full",
        "_loop",
        "_on_repeats",
        "_opened",
        "_said_at",
        "context",
        "endpoint",
        "finished",
        "named",
        "record",
    )

    def __init__(
        self,
        context: ProxyContext,
        client: Downstream,
        record: RequestRecord,
        named: dict[bytes, bytes],
    ) -> None:
        self.endpoint: Endpoint | None = None
        self.finished = False
        self._dialogue: DialectAdapter | None = None
        self._attempt: Attempt | None = None
        self._answer: EngineResponse | None = None
        self._on_repeats: Sequence[tuple[bytes, bytes]] = ()  # what an engine that refuses says
        self._full = False  # the client does not keep up
        self._opened = False  # the head of the answer is out
        self.context = context
        self.record = record
        self.named = named
        self._client = client
        self._loop = context.loop
        self._said_at = record.started
        self._events = 0  # of the answer, when it was last looked at

    @abstractmethod
    def refuse(self, error: CortexError) -> None:
        """Answer with an error of our own."""

    @abstractmethod
    def _elsewhere(self, failure: CortexError) -> None:
        """Nothing was answered yet, so another instance may answer instead."""

    @abstractmethod
    def _finish(self, error: str | None) -> None:
        """It is over, with this code of an error."""

    # -- from the client ---------------------------------------------------------------------

    def client_full(self) -> None:
        """The client does not keep up: stop reading from the engine."""
        self._full = True
        self.record.last_byte = self._loop.time()
        if self._attempt is not None:
            self._attempt.pause()

    def client_drained(self) -> None:
        """The client keeps up again."""
        self._full = False
        self.record.last_byte = self._loop.time()
        if self._attempt is not None:
            self._attempt.resume()

    def client_gone(self) -> None:
        """The client left: whatever is under way for it ends now."""
        if self._answer is not None and self._answer.complete:
            self._finish(None)  # many clients hang up as soon as they have read [DONE]
        elif not self.finished:
            self.context.metrics.disconnects += 1
            self._finish("client_disconnected")

    # -- from the engine ---------------------------------------------------------------------

    def upstream_head(self, status: int, headers: Headers) -> None:
        """See `Receiver`."""
        if _MOVED <= status < _REFUSED:
            self._moved(dict(headers).get(b"location", b"nowhere").decode("latin-1"))
            return
        self.record.status = status
        assert self._dialogue is not None
        streamed = status < 400 and is_event_stream(headers)
        if status >= 400:
            self._on_repeats = retry_headers(0, headers)
        answer = self._answer = self._dialogue.answer(status, streamed=streamed)
        if self._opened:
            if not streamed:
                self._answer = LateError(status, self._dialogue.event)
        elif answer.prompt:
            kept = [h for h in headers if h[0] not in NOT_TO_CLIENT]
            self._open(status, lines(kept), None if streamed else content_length(dict(headers)))

    def _moved(self, location: str) -> None:
        """It redirects, as proxies do to HTTPS: what it would have the key and the body sent to, nobody has named."""
        assert self._attempt is not None
        node = self._attempt.endpoint.node
        self._attempt.abort()
        place = location.partition("?")[0]  # a login's query may be a secret
        self._elsewhere(UpstreamFailed(f"the server on {node} redirects to {place}"))

    def _open(self, status: int, head: bytes, length: int | None) -> None:
        """Send the head, once."""
        if not self._opened:
            self._opened = True
            self._client.respond(status, head + self.record.labels(self.endpoint), length)

    def upstream_data(self, data: bytes) -> None:
        """See `Receiver`."""
        record = self.record
        record.last_byte = now = self._loop.time()
        answer = self._answer
        assert answer is not None
        owed = answer.feed(data)
        if record.first_byte is None and (answer.events or not data.startswith(b":")):
            record.first_byte = now  # comments say that the prompt is still computed
        if owed:
            if not self._opened:
                self._open(200, answer.head, None)
            self._client.write(owed)

    def upstream_read(self) -> None:
        """See `Receiver`."""
        self._client.flush()

    def upstream_lane(self, sizes: SizeLines) -> StreamFastPath | None:
        """See `Receiver`."""
        repair = self._answer.repair if self._answer is not None and self._opened else None
        around = repair.text_envelope if repair is not None else None
        client = self._client.chunked() if around is not None else None
        if repair is None or around is None or client is None:
            return None
        return StreamFastPath(around, repair, client, sizes)

    def upstream_end(self) -> None:
        """See `Receiver`."""
        self._attempt = None
        answer = self._answer
        assert answer is not None
        owed = answer.end()
        status = answer.status
        if 400 <= status < 500:
            self.record.status = status
        if not self._opened:
            head = JSON_HEAD
            if status >= 400:
                head += lines(retry_headers(status, self._on_repeats))
            self._open(status, head, len(owed))
        if owed:
            self._client.write(owed)
        self._client.end()
        self._finish(answer.error)

    def upstream_lost(self, reason: str, *, answered: bool) -> None:
        """See `Receiver`."""
        attempt = self._attempt
        assert attempt is not None
        if self.record.status:
            self._break_off(UpstreamFailed(f"the engine broke off: {reason}"))
        elif not attempt.replace(answered=answered):
            self._elsewhere(UpstreamFailed(f"the engine on {attempt.endpoint.node}: {reason}"))

    def _break_off(self, error: CortexError) -> None:
        """Too late for another instance: say that the answer is not whole."""
        answer = self._answer
        assert answer is not None
        told = answer.broken(error)
        if told is None:
            self._client.abort()
        else:
            self._open(answer.status, JSON_HEAD, len(told))
            self._client.write(told)
            self._client.end()
        self._finish(error.code)

    # -- while nothing is said ---------------------------------------------------------------

    def check_silence(self, now: float) -> None:
        """Called once a second: keep a waiting stream alive, give up whoever does nothing for too long."""
        if self._client.vanished():
            self._give_up_client("client_vanished")
            return
        if self._full:
            if now - self.record.last_byte > self.context.settings.idle_timeout_s:
                self._give_up_client("client_stalled")
            return
        if self._attempt is None:
            return
        if self._answer is not None and self._answer.events != self._events:
            self._events = self._answer.events  # a lane keeps no time
            self.record.last_byte = now
        settings = self.context.settings
        pause = settings.prefill_comment_after_s
        if (
            pause
            and not self.record.status
            and now - self._said_at > pause
            and self._may_keep_alive()
        ):
            self._said_at = now
            self._keep_alive(b"computing the prompt")
        if self._answer is not None and self._answer.lingering:
            if now - self.record.last_byte > LINGER_S:
                self._attempt.abort()
                self.upstream_end()
            return
        limit = settings.idle_timeout_s if self.record.status else settings.first_byte_timeout_s
        if now - self.record.last_byte > limit:
            self._attempt.abort()
            self._attempt = None
            self.cut_off(UpstreamTimeout(f"the engine has been silent for {limit:g} s"))

    def _give_up_client(self, why: str) -> None:
        """It takes nothing, or is gone without a word: an engine works for it, and drains and evictions wait."""
        event(log, why, logging.WARNING, request=self.record.ident.decode())
        self._client.abort()
        self.client_gone()

    def cut_off(self, error: CortexError) -> None:
        """End it now, with an error that says why."""
        if self.record.status and not self.finished:
            self._break_off(error)
        else:
            self.refuse(error)

    def _may_keep_alive(self) -> bool:
        wanted = self._dialogue is not None and self._dialogue.stream
        return wanted and self.named.get(b"x-cortex-keep-alive") != b"off"

    def _keep_alive(self, comment: bytes) -> None:
        """Say something that clients skip, so that nobody on the way takes a long silence for a dead connection."""
        assert self._dialogue is not None
        self._open(200, STREAM_HEAD, None)
        self._client.write(self._dialogue.keep_alive(comment))
        self._client.flush()
