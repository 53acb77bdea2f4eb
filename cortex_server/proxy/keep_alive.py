"""The pauses between the comments that keep a waiting stream alive.

Two limits of others bound them. Reverse proxies close a connection that is silent for 60 s (nginx, AWS load balancers).
go-openai gives up a stream after 300 lines without data, which are 150 comments; its count starts again with each
chunk.
"""

from __future__ import annotations

_GROWTH = 1.25
_LONGEST_S = 40.0
"""90 comments in an hour."""


def keep_alive_pause(first_s: float, sent: int) -> float:
    """Return the seconds to wait before the next comment.

    Pauses grow from comment to comment, so that an hour of them stays below 150 however short the first pause is.

    Args:
        first_s: the configured pause before the first comment; a longer one than 40 s is never changed.
        sent: comments sent so far.
    """
    growth = _GROWTH ** min(sent, 64)
    return float(max(first_s, min(first_s * growth, _LONGEST_S)))
