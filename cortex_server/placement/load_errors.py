"""The errors that waiting requests are answered with."""

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
from cortex_server.placement.plans import Impossible

MAX_SHOWN_REFUSALS = 16
"""Refusals that an error carries; `cortex plan load MODEL` shows all."""


def load_failed(model: str, failure: FailureRecord, retry_after: float) -> LoadFailed:
    """Return the error for a failed load; only an engine that was started has a log to refer to."""
    return LoadFailed(
        f"model {model!r} could not be loaded: {failure.reason}",
        hints=(f"cortex models logs {quote(model)}",) if failure.engine_started else (),
        retry_after=retry_after,
    )


def queue_full(model: str, limit: int) -> Busy:
    """Return the error for too many waiting requests."""
    return Busy(
        f"{limit} requests are already waiting for model {model!r}",
        hints=("raise [placement] max_waiting, or replicas.max of the model",),
        retry_after=5.0,
    )


def still_loading(model: str, load: PendingLoad | None, position: int) -> ModelLoading:
    """Return the error for an expired deadline; position 1 means that no other model has waited longer."""
    state = load.stage.value if load else "waiting_for_capacity"
    node = load.order.plan.node if load else None
    return ModelLoading(
        f"model {model!r} is not ready yet",
        hints=("retry the request; the load continues", "cortex ps shows its progress"),
        retry_after=5.0,
        details={
            "model": model,
            "loading": {"state": state, "node": node, "position": position, "eta_s": None},
        },
    )


def impossible(model: str, plan: Impossible) -> CortexError:
    """Return the error when no node can hold the model, or when those that could are cordoned or down."""
    refusals = plan.refusals
    shown = [
        {
            "node": r.node,
            "device": r.device,
            "reason": r.reason,
            "missing_mb": r.missing_mb,
            "reclaimable_mb": r.reclaimable_mb,
        }
        for r in refusals[:MAX_SHOWN_REFUSALS]
    ]
    reasons = "; ".join(
        f"{r.node}{'' if r.device is None else f'/{r.device}'}: {r.reason}" for r in refusals[:3]
    )
    more = f" (and {len(refusals) - 3} more)" if len(refusals) > 3 else ""
    if plan.cordoned:
        nodes = " ".join(map(quote, plan.cordoned))
        return NoHealthyNode(
            f"model {model!r} fits only on nodes that are cordoned: {', '.join(plan.cordoned)}",
            hints=(f"cortex nodes uncordon {nodes}", f"cortex plan load {quote(model)}"),
            retry_after=30.0,
            details={"refusals": shown},
        )
    if plan.no_node:
        details = f": {reasons}{more}" if refusals else ""
        return NoHealthyNode(
            f"no node that could serve model {model!r} is reachable{details}",
            hints=("cortex nodes ls", "systemctl status neuron on the nodes"),
            retry_after=5.0,
            details={"refusals": shown},
        )
    return DoesNotFit(
        f"model {model!r} fits on no device: {reasons}{more}",
        hints=(f"cortex plan load {quote(model)}",),
        details={"refusals": shown},
    )
