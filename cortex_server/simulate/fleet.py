"""The fleet file of a simulation: hosts and models, as far as placement needs them."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from cortex_common.config.base import Section
from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import DeviceView, NodeState, NodeView
from cortex_common.schema.hardware import DeviceKind
from cortex_server.simulate.failures import SAMPLE, Failures


class Hosts(Section):
    """[[hosts]]: a group of identical hosts."""

    name: str
    """Name of the group; a number is appended where there are several hosts."""

    count: Annotated[int, Field(ge=1)] = 1
    """Number of hosts."""

    devices: Annotated[int, Field(ge=1)] = 8
    """GPUs per host."""

    vram_mb: Annotated[int, Field(ge=1)] = 81_920
    """MiB of each GPU."""

    card: str = "GPU"
    """Product name of the GPUs."""


class Model(Section):
    """[[models]]: one model."""

    id: str
    """Its name in the trace."""

    vram_mb: Annotated[int, Field(ge=1)]
    """MiB over all its devices."""

    actual_vram_mb: Annotated[int, Field(ge=1)] | None = None
    """MiB that it takes in fact. More than `vram_mb` runs out of memory where that much is not free.
    Default: `vram_mb`."""

    load_s: Annotated[float, Field(gt=0)]
    """Seconds to load it."""

    tokens_per_s: Annotated[float, Field(gt=0)] = 50.0
    """Tokens per second of one response."""

    min_devices: Annotated[int, Field(ge=1)] = 1
    """Number of its devices."""

    priority: int = 0
    """Priority, for the "priority" strategy."""

    def to_config(self) -> ModelConfig:
        """Return its model config."""
        return ModelConfig(
            id=self.id,
            harness="simulated",
            vram_mb=self.vram_mb,
            min_devices=self.min_devices,
            priority=self.priority,
        )


class SimulatedFleet(Section):
    """The contents of a fleet file."""

    hosts: tuple[Hosts, ...] = (Hosts(name="host"),)
    models: tuple[Model, ...] = ()
    failures: Failures = Failures()

    def nodes(self) -> tuple[NodeView, ...]:
        """Return every host, empty."""
        return tuple(
            _node(group, group.name if group.count == 1 else f"{group.name}-{at:04}")
            for group in self.hosts
            for at in range(group.count)
        )

    @property
    def capacity_mb(self) -> int:
        """MiB of all devices together."""
        return sum(h.count * h.devices * h.vram_mb for h in self.hosts)


def _node(group: Hosts, name: str) -> NodeView:
    devices = tuple(
        DeviceView(
            index=i,
            uuid=f"{name}-{i}",
            kind=DeviceKind.CUDA,
            name=group.card,
            vram_total_mb=group.vram_mb,
            vram_available_mb=group.vram_mb,
        )
        for i in range(group.devices)
    )
    return NodeView(
        name=name,
        endpoint="",
        state=NodeState.UP,
        harnesses=("simulated",),
        devices=devices,
    )


SIZES_MB = (4_000, 9_000, 18_000, 38_000, 72_000, 150_000)
"""From small models to one that needs two 80 GB GPUs."""

LARGEST_MB = 160_000
"""What an underestimated model takes at most: it fits two empty GPUs."""

MIB_PER_SECOND = 1_500.0
"""Disk throughput assumed for generated load times."""


UNDERESTIMATED_SHARE = 0.2
"""Share of models of a generated fleet that take more than their config says, if failures are simulated."""


def synthetic_fleet(
    hosts: int = 1, devices: int = 8, models: int = 40, seed: int = 1, *, failures: bool = False
) -> SimulatedFleet:
    """Return a generated fleet of 80 GB GPUs with models of many sizes, for use without a fleet file.

    Args:
        hosts: number of hosts.
        devices: GPUs per host.
        models: number of models.
        seed: the same seed generates the same fleet.
        failures: engines crash, hosts are away, and some models take more memory than their config says.
    """
    rng = random.Random(seed)  # noqa: S311 - not a secret
    made = []
    for at in range(models):
        size = rng.choice(SIZES_MB)
        underestimated = failures and rng.random() < UNDERESTIMATED_SHARE
        made.append(
            Model(
                id=f"model-{at:03}",
                vram_mb=size,
                actual_vram_mb=min(LARGEST_MB, round(size * rng.uniform(1.05, 1.3)))
                if underestimated
                else None,
                load_s=round(3 + size / MIB_PER_SECOND * rng.uniform(0.5, 2), 1),
                min_devices=2 if size > 80_000 else 1,
                tokens_per_s=round(2_000_000 / (20_000 + size), 1),
                priority=rng.randrange(3),
            )
        )
    return SimulatedFleet(
        hosts=(Hosts(name="host", count=hosts, devices=devices),),
        models=tuple(made),
        failures=SAMPLE if failures else Failures(),
    )
