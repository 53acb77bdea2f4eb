"""What is known about models from what they did: sizes, load times, how often they are asked for, where they were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.fit import Size, SizeKey, SizeSource, size_key

HALF_LIFE_S = 1800.0
"""After this long without requests a model counts as asked for half as often."""

UNMEASURED_LOAD_S = 10.0
"""Seconds that a load is taken to need before one was measured."""


GROWTH = 1.02
"""An instance that has grown by this factor since it was measured is measured again."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one load took.

    Attributes:
        build: version of the engine; another build measures anew.
        device_mb: the most MiB on one of its devices, once ready.
        load_s: seconds from the node's start of it to ready.
        at: Unix seconds.
        n: how many loads it stands for.
        last_mb: what the last of them took, where it stands for several.
    """

    key: SizeKey
    build: str
    node: str
    device_mb: int
    load_s: float
    at: float
    n: int = 1
    last_mb: int | None = None


class Measurements:
    """Grows with every load, and with every request that was counted.

    Args:
        measurements: of earlier runs, oldest first.
    """

    def __init__(self, measurements: Iterable[Measurement] = ()) -> None:
        self._sizes: dict[SizeKey, Size] = {}
        self._builds: dict[SizeKey, str] = {}
        self._load_s: dict[str, float] = {}
        self._stored: dict[ModelId, frozenset[str]] = {}
        self._rates: dict[str, tuple[int, float, float]] = {}
        self._measured: dict[InstanceId, int] = {}
        self._loads: dict[tuple[SizeKey, str, str], Measurement] = {}
        for measurement in measurements:
            self._take(measurement)

    @property
    def sizes(self) -> Mapping[SizeKey, Size]:
        """Measured sizes, and those that nodes gave as the reason of a refusal."""
        return self._sizes

    @property
    def stored(self) -> Mapping[ModelId, frozenset[str]]:
        """Nodes that have loaded a model before."""
        return self._stored

    def load_seconds(self, model: str) -> float | None:
        """Seconds that a load of the model takes, where one was measured."""
        return self._load_s.get(model)

    def refused(
        self, model_config: ModelConfig, kind: DeviceKind, devices: int, needed_mb: int
    ) -> None:
        """A node refused a load and said what it needs.

        What was measured is not replaced by an estimate, unless that is larger.
        """
        key = size_key(model_config, kind, devices)
        known = self._sizes.get(key)
        if known is None or needed_mb > known.device_mb:
            self._sizes[key] = Size(needed_mb, SizeSource.NODE)

    def ask_anew(self, model: str) -> None:
        """Forget what nodes said that the model needs: what they were asked for has changed."""
        self._sizes = {
            key: size
            for key, size in self._sizes.items()
            if key.model != model or size.source is not SizeSource.NODE
        }

    def observe(
        self, snapshot: FleetSnapshot, model_configs: Mapping[str, ModelConfig], now: float
    ) -> list[Measurement]:
        """Learn from a snapshot.

        Args:
            snapshot: the fleet now.
            model_configs: by model id.
            now: monotonic seconds.

        Returns:
            What loads that became ready since the last call took, to be remembered.
        """
        for model in snapshot.models:
            self._count(model.id, model.requests, now)
        found: list[Measurement] = []
        visible: set[InstanceId] = set()
        for node in snapshot.nodes:
            for instance in node.instances:
                visible.add(instance.id)
                model_config = model_configs.get(instance.model)
                if model_config is None:
                    continue
                measurement = _measure(model_config, node, instance, snapshot.at)
                if measurement is None:
                    continue
                known = self._measured.get(instance.id)
                if known is None or measurement.device_mb > known * GROWTH:
                    self._measured[instance.id] = measurement.device_mb
                    measurement = replace(measurement, n=int(known is None))
                    self._take(measurement)
                    found.append(measurement)
        self._measured = {i: mb for i, mb in self._measured.items() if i in visible}
        return found

    def measurements(self, model: str) -> tuple[Measurement, ...]:
        """What loads of a model took, by key, build and node."""
        return tuple(m for m in self._loads.values() if m.key.model == model)

    def stats(self, model_config: ModelConfig, now: float) -> ModelStats:
        """How a model stands; `now` is monotonic seconds."""
        return ModelStats(
            priority=model_config.priority,
            reload_s=self._load_s.get(model_config.id, UNMEASURED_LOAD_S),
            rate=self.rate(model_config.id, now),
            keep=model_config.replicas.min,
        )

    def rate(self, model: str, now: float) -> float:
        """Requests a second, recent ones counting most."""
        _, weight, at = self._rates.get(model, (0, 0.0, now))
        return decayed(weight, now - at) * math.log(2) / HALF_LIFE_S

    def _count(self, model: str, total: int, now: float) -> None:
        seen, weight, at = self._rates.get(model, (0, 0.0, now))
        if total != seen or model not in self._rates:
            more = max(0, total - seen)
            self._rates[model] = (total, decayed(weight, now - at) + more, now)

    def _take(self, m: Measurement) -> None:
        """The largest of one build stands, as memory grows with use; another build starts anew."""
        known = self._sizes.get(m.key)
        same = known is not None and self._builds.get(m.key) == m.build
        if known is not None and same and known.source is SizeSource.MEASURED:
            self._sizes[m.key] = replace(known, device_mb=max(known.device_mb, m.device_mb))
        else:
            self._sizes[m.key] = Size(m.device_mb, SizeSource.MEASURED)
        self._builds[m.key] = m.build
        same_load = (m.key, m.build, m.node)
        so_far = self._loads.get(same_load)
        self._loads[same_load] = replace(
            m,
            n=m.n + (so_far.n if so_far else 0),
            device_mb=max(m.device_mb, so_far.device_mb if so_far else 0),
            last_mb=m.last_mb or m.device_mb,
        )
        model = ModelId(m.key.model)
        before = self._load_s.get(model, m.load_s)
        self._load_s[model] = (before + m.load_s) / 2
        self._stored[model] = self._stored.get(model, frozenset()) | {m.node}


def decayed(weight: float, seconds: float) -> float:
    """A weight after some seconds of forgetting."""
    return weight * math.exp2(-max(0.0, seconds) / HALF_LIFE_S)


def _measure(
    model_config: ModelConfig, node: NodeView, instance: InstanceView, at: float
) -> Measurement | None:
    """What a ready instance took; None while it is not ready or its node has not measured it."""
    if instance.state is not InstanceState.READY or not instance.devices:
        return None
    if instance.load_seconds is None or instance.vram_used_mb <= 0:
        return None
    kinds = {d.kind for d in node.devices if d.index in instance.devices}
    if len(kinds) != 1:
        return None
    shares = instance.vram_by_device or (-(-instance.vram_used_mb // len(instance.devices)),)
    if max(shares) <= 0:
        return None
    return Measurement(
        key=size_key(model_config, kinds.pop(), len(instance.devices)),
        build=instance.engine_version or "",
        node=node.name,
        device_mb=max(shares),
        load_s=instance.load_seconds,
        at=at,
    )


class CurrentStats:
    """How models stand at one moment; each is worked out once, when first asked for.

    Args:
        knowledge: of what they did.
        profiles: by model id.
        now: monotonic seconds.
    """

    def __init__(
        self, measurements: Measurements, model_configs: Mapping[str, ModelConfig], now: float
    ) -> None:
        self._measurements = measurements
        self._model_configs = model_configs
        self._now = now
        self._known: dict[ModelId, ModelStats] = {}

    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        """See `Standings.get`."""
        known = self._known.get(model)
        if known is None:
            model_config = self._model_configs.get(model)
            if model_config is None:
                return default
            known = self._known[model] = self._measurements.stats(model_config, self._now)
        return known
