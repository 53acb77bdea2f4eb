"""Facts about placement that outlive the gateway: what loads took, and which models are pinned."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.schema.instances import ModelId
from cortex_server.placement.fit import SizeKey


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one or several loads took.

    Attributes:
        key: what the size depends on.
        card: name of its devices.
        build: version of the engine; a new build is measured again.
        node: the node.
        device_mb: the most MiB on one of its devices, once ready.
        load_s: seconds from the start of the engine until ready.
        at: Unix seconds.
        n: number of loads.
        last_mb: MiB of the last of them, if there were several.
    """

    key: SizeKey
    card: str
    build: str
    node: str
    device_mb: int
    load_s: float
    at: float
    n: int = 1
    last_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """A model that is protected from eviction.

    Attributes:
        model: the model.
        node: the node it is pinned on; None for all.
        until: Unix seconds at which the pin expires; None for never.
    """

    model: ModelId
    node: str | None
    until: float | None
