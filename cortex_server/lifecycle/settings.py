"""From the operator's configuration to what the cores take, and names for what they decide."""

from __future__ import annotations

import re
import secrets

from cortex_common.config.gateway import GatewayConfig
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.policy import Policy, Prefer, Strategy


def policy_of(config: GatewayConfig) -> Policy:
    """The operator's choices as the cores take them."""
    return Policy(
        strategy=Strategy(config.eviction.strategy),
        prefer=Prefer(config.placement.prefer),
        min_residency_s=config.eviction.min_residency,
        patience_s=config.placement.patience,
        max_waiting=config.placement.max_waiting,
        restart_after_cycles=config.eviction.defrag_after_cycles,
        labels={n.name: n.labels for n in config.neurons},
    )


def new_instance_id(model: str) -> InstanceId:
    """A readable name that no other gateway or run gives: the end of the model's name and 48 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return InstanceId(f"{slug or 'model'}-{secrets.token_hex(6)}")
