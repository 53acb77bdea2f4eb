"""Propagation of distributed traces with W3C Trace Context (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(slots=True)
class Span:
    """The ids of one request's spans.

    Attributes:
        trace: Id of the trace.
        parent: Id of the caller's span; 0 if there is none.
        own: Id of the gateway's span.
        engine: Id of the engine's span; the engine gets it as its parent.
        sampled: Whether the trace is recorded.
        engine_started: When the request was sent to the engine, by the event loop's time.
    """

    trace: int
    parent: int
    own: int
    engine: int
    sampled: bool
    engine_started: float | None = None

    @property
    def traceparent(self) -> bytes:
        """Value of the traceparent header that the engine gets."""
        return b"00-%032x-%016x-%02x" % (self.trace, self.engine, self.sampled)


def start_span(traceparent: bytes) -> Span:
    """Return the span of a request, in its caller's trace or in a new one.

    Args:
        traceparent: The caller's header; empty if it sent none.
    """
    # Ids must be distinct, not unguessable.
    own, engine = random.getrandbits(64) | 1, random.getrandbits(64) | 1
    if found := _TRACEPARENT.fullmatch(traceparent):
        trace, parent = int(found[1], 16), int(found[2], 16)
        if trace and parent:
            return Span(trace, parent, own, engine, bool(int(found[3], 16) & 1))
    return Span(random.getrandbits(128) | 1, 0, own, engine, True)
