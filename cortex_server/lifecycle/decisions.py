"""What requests waited for, kept for whoever asks why one went where it went."""

from __future__ import annotations

from collections import OrderedDict

from cortex_common.operator import DecisionView

KEPT = 2000
"""Requests that are remembered, the latest; one that waited for nothing takes no place."""


class Decisions:
    """Waits by request id. A request may wait more than once, as what it got may be gone before it comes to it."""

    def __init__(self) -> None:
        self._by_request: OrderedDict[str, tuple[DecisionView, ...]] = OrderedDict()

    def keep(self, request: str, decision: DecisionView) -> None:
        """Remember how a wait ended."""
        self._by_request[request] = (*self._by_request.pop(request, ()), decision)
        if len(self._by_request) > KEPT:
            self._by_request.popitem(last=False)

    def of(self, request: str) -> tuple[DecisionView, ...]:
        """The waits of a request, the first first; none when it had none, or is forgotten."""
        return self._by_request.get(request, ())
