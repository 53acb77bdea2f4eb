"""Why a request went where it went, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.render.table import printable
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestView
from cortex_common.units import show_duration

REASONS = {
    "only": "it was the only instance that was ready",
    "least-busy": "of the ready instances it was the least busy",
    "context": "it was the least busy of those whose context holds the prompt",
    "session": "the conversation was there before",
    "loaded": "it was loaded for this request, or for others of the same model",
    "retry": "another instance failed before it had answered anything",
}
"""What x-cortex-route says, in words."""


def why_text(request: RequestView, decisions: Sequence[DecisionView]) -> str:
    """The story of a request, a line for each thing that was decided."""
    lines = [f"{request.id} asked for {request.model or 'no model'} and is {_state(request)}"]
    if request.queue_ms:
        lines.append(f"it waited {show_duration(request.queue_ms / 1000)}")
    lines += [_waited(d) for d in decisions]
    if request.instance is not None:
        reason = REASONS.get(request.reason or "", request.reason or "for no reason that is known")
        lines.append(f"it went to {request.instance} on {request.node}: {reason}")
    else:
        lines.append("it went to no instance")
    return "\n".join(map(printable, lines))


def _state(request: RequestView) -> str:
    return request.outcome or request.state.value


def _waited(decision: DecisionView) -> str:
    waited = show_duration(decision.waited_s)
    if decision.instance is None:
        return f"in vain for {waited}: {decision.why}"
    gone = f", after {', '.join(decision.evicted)} had gone" if decision.evicted else ""
    return f"{waited} for {decision.instance}, which was placed there as {decision.why}{gone}"
