"""What is known about models from their loads and requests: sizes, load times, rates, and nodes with weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from typing_extensions import override

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import OUT_OF_MEMORY, InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import node_capacity
from cortex_server.placement.eviction import ModelStats, StatsByModel
from cortex_server.placement.fit import Size, SizeKey, Sizes, SizeSource, size_key
from cortex_server.placement.records import Measurement

HALF_LIFE_S = 1800.0
"""Seconds after which a request counts half as much towards a model's rate."""

DEFAULT_LOAD_S = 10.0
"""Expected seconds of a load before one was measured."""


REMEASURE_GROWTH = 1.02
"""An instance is measured again once its memory has grown by this factor."""


class Measurements:
    """Learns from every load and every counted request.

    Args:
        measurements: measurements of earlier runs, oldest first.
    """

    def __init__(self, measurements: Iterable[Measurement] = ()) -> None:
        self._sizes: dict[SizeKey, dict[str, Size]] = {}
        self._builds: dict[tuple[SizeKey, str], str] = {}
        self._load_s: dict[str, float] = {}
        self._nodes_with_weights: dict[ModelId, frozenset[str]] = {}
        self._rates: dict[str, tuple[int, float, float]] = {}
        self._measured: dict[InstanceId, int] = {}
        self._out_of_memory: frozenset[InstanceId] = frozenset()
        self._loads: dict[tuple[SizeKey, str, str, str], Measurement] = {}
        for measurement in measurements:
            self._add(measurement)

    @property
    def sizes(self) -> Sizes:
        """Measured sizes, and sizes that nodes gave as the reason for a refusal."""
        return self._sizes

    @property
    def nodes_with_weights(self) -> Mapping[ModelId, frozenset[str]]:
        """By model, the nodes that have loaded it before."""
        return self._nodes_with_weights

    def load_seconds(self, model: str) -> float | None:
        """Return the seconds that a load of the model takes, if one was measured."""
        return self._load_s.get(model)

    def record_refusal(
        self, model_config: ModelConfig, kind: DeviceKind, devices: int, card: str, needed_mb: int
    ) -> None:
        """Record the size that a node named when it refused a load.

        An estimate replaces a measured size only if it is larger.
        """
        by_card = self._sizes.setdefault(size_key(model_config, kind, devices), {})
        size = by_card.get(card)
        if size is None or needed_mb > size.device_mb:
            by_card[card] = Size(needed_mb, SizeSource.NODE)

    def forget(self, model: str) -> bool:
        """Forget all sizes of a model; return whether any was known."""
        known = any(key.model == model for key in self._sizes)
        self._sizes = {key: sizes for key, sizes in self._sizes.items() if key.model != model}
        self._loads = {key: load for key, load in self._loads.items() if key[0].model != model}
        return known

    def forget_node_estimates(self, model: str) -> None:
        """Forget the sizes that nodes named for a model, because its config has changed."""
        for key, by_card in self._sizes.items():
            if key.model == model:
                estimated = [c for c, size in by_card.items() if size.source is SizeSource.NODE]
                for card in estimated:
                    del by_card[card]

    def observe(
        self, snapshot: FleetSnapshot, model_configs: Mapping[str, ModelConfig], now: float
    ) -> list[Measurement]:
        """Learn from a snapshot.

        Args:
            snapshot: the fleet now.
            model_configs: model configs by model id.
            now: monotonic seconds.

        Returns:
            Measurements of loads that became ready since the last call, to be stored.
        """
        for model in snapshot.models:
            self._count(model.id, model.requests, now)
        measurements: list[Measurement] = []
        reported: set[InstanceId] = set()
        for node in snapshot.nodes:
            for instance in node.instances:
                reported.add(instance.id)
                model_config = model_configs.get(instance.model)
                if model_config is None:
                    continue
                self._learn_out_of_memory(model_config, node, instance)
                measurement = _measure(model_config, node, instance, snapshot.at)
                if measurement is None:
                    continue
                measured_mb = self._measured.get(instance.id)
                if measured_mb is None or measurement.device_mb > measured_mb * REMEASURE_GROWTH:
                    self._measured[instance.id] = measurement.device_mb
                    measurement = replace(measurement, n=int(measured_mb is None))
                    self._add(measurement)
                    measurements.append(measurement)
        self._measured = {i: mb for i, mb in self._measured.items() if i in reported}
        self._out_of_memory &= reported
        return measurements

    def _learn_out_of_memory(
        self, model_config: ModelConfig, node: NodeView, instance: InstanceView
    ) -> None:
        """Raise the size of a model whose engine ran out of memory, up to what its empty devices have."""
        if instance.failure != OUT_OF_MEMORY or not instance.devices:
            return
        if instance.config not in {None, model_config.config_hash}:
            return
        devices = [d for d in node_capacity(node).devices if d.index in instance.devices]
        if not devices or instance.id in self._out_of_memory:
            return
        self._out_of_memory |= {instance.id}
        used_mb = max(instance.vram_granted_mb, instance.vram_peak_mb)
        needed_mb = min([used_mb + 1, *(d.empty_mb for d in devices)])
        card = devices[0].name
        self.record_refusal(model_config, devices[0].kind, len(devices), card, needed_mb)

    def for_model(self, model: str) -> tuple[Measurement, ...]:
        """Return the measurements of a model, by key, build and node."""
        return tuple(m for m in self._loads.values() if m.key.model == model)

    def stats(self, model_config: ModelConfig, now: float) -> ModelStats:
        """Return the statistics of a model; `now` is monotonic seconds."""
        return ModelStats(
            priority=model_config.priority,
            reload_s=self._load_s.get(model_config.id, DEFAULT_LOAD_S),
            rate=self.rate(model_config.id, now),
            min_replicas=model_config.replicas.min,
        )

    def rate(self, model: str, now: float) -> float:
        """Return the requests per second of a model, weighted towards recent ones."""
        _, weight, at = self._rates.get(model, (0, 0.0, now))
        return decay(weight, now - at) * math.log(2) / HALF_LIFE_S

    def _count(self, model: str, total: int, now: float) -> None:
        counted, weight, at = self._rates.get(model, (0, 0.0, now))
        if total != counted or model not in self._rates:
            added = max(0, total - counted)
            self._rates[model] = (total, decay(weight, now - at) + added, now)

    def _add(self, measurement: Measurement) -> None:
        """Keep the largest size of a build, because memory grows with use; a new build starts over."""
        key, card = measurement.key, measurement.card
        by_card = self._sizes.setdefault(key, {})
        size = by_card.get(card)
        device_mb = measurement.device_mb
        same_build = self._builds.get((key, card)) == measurement.build
        if size is not None and same_build and size.source is SizeSource.MEASURED:
            device_mb = max(size.device_mb, device_mb)
        by_card[card] = Size(device_mb, SizeSource.MEASURED)
        self._builds[key, card] = measurement.build
        same_load = (key, card, measurement.build, measurement.node)
        previous = self._loads.get(same_load)
        self._loads[same_load] = replace(
            measurement,
            n=measurement.n + (previous.n if previous else 0),
            device_mb=max(measurement.device_mb, previous.device_mb if previous else 0),
            last_mb=measurement.last_mb or measurement.device_mb,
        )
        model = ModelId(measurement.key.model)
        previous_load_s = self._load_s.get(model, measurement.load_s)
        self._load_s[model] = (previous_load_s + measurement.load_s) / 2
        self._nodes_with_weights[model] = self._nodes_with_weights.get(model, frozenset()) | {
            measurement.node
        }


def decay(weight: float, seconds: float) -> float:
    """Return a weight after some seconds of exponential decay."""
    return weight * math.exp2(-max(0.0, seconds) / HALF_LIFE_S)


def _measure(
    model_config: ModelConfig, node: NodeView, instance: InstanceView, measured_at: float
) -> Measurement | None:
    """Return what a ready instance took; None while it is not ready or its node has not measured it.

    What was reserved for it is no measurement, unless its engine can still grow to that size. An instance of an older
    model config says nothing about the current one.
    """
    if instance.state is not InstanceState.READY or instance.load_seconds is None:
        return None
    if instance.config is not None and instance.config != model_config.config_hash:
        return None
    devices = [d for d in node.devices if d.index in instance.devices]
    kinds = {d.kind for d in devices}
    if len(kinds) != 1 or not any(instance.vram_measured_mb):
        return None
    device_mb = max(instance.vram_peak_mb, *instance.vram_measured_mb)
    if instance.grows:
        device_mb = max(device_mb, instance.vram_granted_mb)
    return Measurement(
        key=size_key(model_config, kinds.pop(), len(instance.devices)),
        card=devices[0].name,
        build=instance.engine_version or "",
        node=node.name,
        device_mb=device_mb,
        load_s=instance.load_seconds,
        at=measured_at,
    )


class CurrentStats(StatsByModel):
    """The statistics of models at one moment; computed on first use.

    Args:
        measurements: the source of the statistics.
        model_configs: model configs by model id.
        now: monotonic seconds.
    """

    def __init__(
        self, measurements: Measurements, model_configs: Mapping[str, ModelConfig], now: float
    ) -> None:
        self._measurements = measurements
        self._model_configs = model_configs
        self._now = now
        self._cache: dict[ModelId, ModelStats] = {}

    @override
    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        stats = self._cache.get(model)
        if stats is None:
            model_config = self._model_configs.get(model)
            if model_config is None:
                return default
            stats = self._cache[model] = self._measurements.stats(model_config, self._now)
        return stats
