"""A request's place in a distributed trace, as W3C Trace Context passes it on (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(slots=True)
class Span:
    """The ids of one request.

    Attributes:
        trace: id of the whole trace.
        parent: id of the caller's span; 0 where there is none.
        own: id of the gateway's span.
        engine: id of the span in which the engine works, which the engine gets as its parent.
        sampled: whether anybody wants to see it.
        asked_at: when the engine was asked, by the event loop's time; None before.
    """

    trace: int
    parent: int
    own: int
    engine: int
    sampled: bool
    asked_at: float | None = None

    @property
    def traceparent(self) -> bytes:
        """The header that the engine gets."""
        return b"00-%032x-%016x-%02x" % (self.trace, self.engine, self.sampled)


def begin(told: bytes) -> Span:
    """The span of a request: in the trace that its caller's header tells of, or in a new one."""
    # Ids must differ, not be unguessable.
    own, engine = random.getrandbits(64) | 1, random.getrandbits(64) | 1
    if found := _TRACEPARENT.fullmatch(told):
        trace, parent = int(found[1], 16), int(found[2], 16)
        if trace and parent:
            return Span(trace, parent, own, engine, bool(int(found[3], 16) & 1))
    return Span(random.getrandbits(128) | 1, 0, own, engine, True)
