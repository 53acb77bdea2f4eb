"""The operator's placement settings, as plain values for the pure modules."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

from cortex_common.backoff import Backoff
from cortex_common.config.gateway import GatewayConfig
from cortex_common.schema.instances import InstanceId

LOAD_BACKOFF = Backoff(initial_s=2.0, max_s=300.0)
"""How long a model whose load failed is not loaded again; clients are refused meanwhile."""


class Strategy(StrEnum):
    """How the instances to evict are chosen."""

    LRU = "lru"
    PRIORITY = "priority"
    COST = "cost"


class Prefer(StrEnum):
    """Which of several devices with enough memory a load takes."""

    PACK = "pack"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of placement and lifecycle. Durations are seconds.

    Attributes:
        strategy: how the instances to evict are chosen.
        prefer_gpu: evict idle instances from GPUs before a model that fits there is placed on the CPU.
        prefer: "pack" fills the fullest device that has enough memory and keeps large blocks whole; "spread" takes the
            emptiest, so that models share fewer devices.
        min_residency_s: an instance is not evicted until it has been ready for as long as its load took, at most this
            long, unless no other eviction suffices.
        patience_s: how long a request waits for memory that busy instances hold before one of them is drained.
        max_waiting: limit on the requests waiting for one model.
        load_backoff: how long a model whose load failed is not loaded again.
        restart_after_cycles: loads and unloads after which an attached engine is restarted; 0 for never.
        labels: node labels, by node name.
    """

    strategy: Strategy = Strategy.LRU
    prefer: Prefer = Prefer.PACK
    prefer_gpu: bool = True
    min_residency_s: float = 30.0
    patience_s: float = 5.0
    max_waiting: int = 1000
    load_backoff: Backoff = LOAD_BACKOFF
    restart_after_cycles: int = 50
    labels: dict[str, dict[str, str]] = field(default_factory=dict)


def policy_from_config(config: GatewayConfig) -> Policy:
    """Return the policy that the gateway's configuration describes."""
    return Policy(
        strategy=Strategy(config.eviction.strategy),
        prefer=Prefer(config.placement.prefer),
        prefer_gpu=config.placement.prefer_gpu,
        min_residency_s=config.eviction.min_residency,
        patience_s=config.placement.drain_after,
        max_waiting=config.placement.max_waiting,
        restart_after_cycles=config.eviction.defrag_after_cycles,
        labels={n.name: n.labels for n in config.neurons},
    )


def new_instance_id(model: str) -> InstanceId:
    """Return a readable id, unique across gateways and restarts: the end of the model's name and 48 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return InstanceId(f"{slug or 'model'}-{secrets.token_hex(6)}")
