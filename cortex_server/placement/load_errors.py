"""What those are told who wait in vain."""

from __future__ import annotations

from shlex import quote

from cortex_common.errors import (
    Busy,
    CortexError,
    DoesNotFit,
    LoadFailed,
    ModelLoading,
    NoHealthyNode,
)
from cortex_server.placement.failure_backoff import FailureRecord
from cortex_server.placement.pending_loads import PendingLoad
from cortex_server.placement.planner import Impossible

SHOWN = 16
"""Refusals that an error carries; `cortex plan load MODEL` shows all."""


def load_failed(model: str, failure: FailureRecord, retry_after: float) -> LoadFailed:
    """It could not be loaded; only an engine that was started has a log to look at."""
    return LoadFailed(
        f"model {model!r} could not be loaded: {failure.reason}",
        hints=(f"cortex models logs {quote(model)}",) if failure.started else (),
        retry_after=retry_after,
    )


def queue_full(model: str, most: int) -> Busy:
    """Too many wait already."""
    return Busy(
        f"{most} requests wait for model {model!r} already",
        hints=("raise [placement] max_waiting, or replicas.max of the model",),
        retry_after=5.0,
    )


def still_loading(model: str, load: PendingLoad | None, position: int) -> ModelLoading:
    """The deadline came first; `position` is the place in the queue, 1 when nobody waits longer for another model."""
    state = load.stage.value if load else "waiting_for_room"
    node = load.order.plan.node if load else None
    return ModelLoading(
        f"model {model!r} is not ready yet",
        hints=("repeat the request; the load goes on", "cortex ps shows how far it is"),
        retry_after=5.0,
        details={
            "model": model,
            "loading": {"state": state, "node": node, "position": position, "eta_s": None},
        },
    )


def impossible(model: str, found: Impossible) -> CortexError:
    """No node could hold it, however long one waited; or those that could are cordoned or away, which passes."""
    refusals = found.refusals
    shown = [
        {
            "node": r.node,
            "device": r.device,
            "reason": r.reason,
            "missing_mb": r.missing_mb,
            "reclaimable_mb": r.reclaimable_mb,
        }
        for r in refusals[:SHOWN]
    ]
    why = "; ".join(
        f"{r.node}{'' if r.device is None else f'/{r.device}'}: {r.reason}" for r in refusals[:3]
    )
    more = f" (and {len(refusals) - 3} more)" if len(refusals) > 3 else ""
    if found.cordoned:
        nodes = " ".join(map(quote, found.cordoned))
        return NoHealthyNode(
            f"model {model!r} fits only on nodes that are cordoned: {', '.join(found.cordoned)}",
            hints=(f"cortex nodes uncordon {nodes}", f"cortex plan load {quote(model)}"),
            retry_after=30.0,
            details={"refusals": shown},
        )
    if found.no_node:
        named = f": {why}{more}" if refusals else ""
        return NoHealthyNode(
            f"no node that could serve model {model!r} answers{named}",
            hints=("cortex nodes ls", "systemctl status neuron on the nodes"),
            retry_after=5.0,
            details={"refusals": shown},
        )
    return DoesNotFit(
        f"model {model!r} fits on no device: {why}{more}",
        hints=(f"cortex plan load {quote(model)}",),
        details={"refusals": shown},
    )
