"""What the operator chose about placement, as plain values that the cores compute with."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

from cortex_common.config.gateway import GatewayConfig
from cortex_common.schema.instances import InstanceId


class Strategy(StrEnum):
    """How the victims of an eviction are chosen."""

    LRU = "lru"
    PRIORITY = "priority"
    COST = "cost"


class Prefer(StrEnum):
    """Which of several devices with room a load takes."""

    PACK = "pack"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of placement and lifecycle; seconds throughout.

    Attributes:
        strategy: how victims are chosen.
        prefer: pack fills the tightest device that has room and keeps large blocks whole; spread takes
            the emptiest, so that models share fewer devices.
        min_residency_s: an instance is not evicted before it was ready for as long as its load took, at
            most this long, unless nothing else makes room.
        patience_s: how long a request waits for a model that others keep busy before that model is
            drained for it.
        max_waiting: requests that may wait for one model.
        backoff_s: pause after a model's first failed load; doubles with each further one.
        max_backoff_s: longest such pause.
        restart_after_cycles: loads and unloads in an engine of somebody else after which it is restarted; 0 never.
        labels: labels of the nodes, by node name.
    """

    strategy: Strategy = Strategy.LRU
    prefer: Prefer = Prefer.PACK
    min_residency_s: float = 30.0
    patience_s: float = 5.0
    max_waiting: int = 1000
    backoff_s: float = 2.0
    max_backoff_s: float = 300.0
    restart_after_cycles: int = 50
    labels: dict[str, dict[str, str]] = field(default_factory=dict)


def policy_of(config: GatewayConfig) -> Policy:
    """The operator's choices as the cores take them."""
    return Policy(
        strategy=Strategy(config.eviction.strategy),
        prefer=Prefer(config.placement.prefer),
        min_residency_s=config.eviction.min_residency,
        patience_s=config.placement.drain_after,
        max_waiting=config.placement.max_waiting,
        restart_after_cycles=config.eviction.defrag_after_cycles,
        labels={n.name: n.labels for n in config.neurons},
    )


def new_instance_id(model: str) -> InstanceId:
    """A readable name that no other gateway or run gives: the end of the model's name and 48 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return InstanceId(f"{slug or 'model'}-{secrets.token_hex(6)}")
