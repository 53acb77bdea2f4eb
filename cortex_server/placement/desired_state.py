"""What time alone makes due: unloading idle models, adding missing replicas, scaling out busy models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_server.placement.load_queue import LoadKey


@dataclass(frozen=True, slots=True)
class Actions:
    """What is to be done.

    Attributes:
        unload: instances that have been idle for longer than their model's time to live.
        load: instances that are missing.
    """

    unload: tuple[InstanceView, ...] = ()
    load: tuple[LoadKey, ...] = ()


@dataclass(slots=True)
class _IdleRecord:
    last_used: float
    idle_since: float


@dataclass(slots=True)
class DesiredState:
    """Compares the fleet with what it should be, over time.

    Idle times are measured with the monotonic clock from when an instance was last seen busy, so a host clock that
    jumps
    unloads nothing.

    Attributes:
        idle_ttl_s: time to live of models whose config sets none; 0 for never.
        scale_out_after_s: seconds that all slots must be taken before a further instance is loaded.
        ttls: time to live by model, set by an operator with a load; kept until set again.
        unloaded_models: models that an operator unloaded; their replicas are not restored until a request asks for one.
    """

    idle_ttl_s: float
    scale_out_after_s: float
    ttls: Mapping[str, float] = field(default_factory=dict[str, float])
    unloaded_models: set[str] = field(default_factory=set)
    _idle: dict[InstanceId, _IdleRecord] = field(default_factory=dict)
    _full_since: dict[str, float] = field(default_factory=dict)

    def actions(
        self, snapshot: FleetSnapshot, model_configs: Iterable[ModelConfig], now: float
    ) -> Actions:
        """Return what is due.

        Args:
            snapshot: the fleet now.
            model_configs: the model configs.
            now: monotonic seconds.
        """
        by_model: dict[str, list[InstanceView]] = {}
        for node in snapshot.nodes:
            if node.state is NodeState.UP:
                for instance in node.instances:
                    by_model.setdefault(instance.model, []).append(instance)
        self._track_idle(by_model, now)
        all_reported = all(node.state is not NodeState.CONNECTING for node in snapshot.nodes)
        unload: list[InstanceView] = []
        load: list[LoadKey] = []
        for model_config in model_configs:
            instances = by_model.get(model_config.id, [])
            unload += self._expired(model_config, instances, now)
            key = self._missing_replica(model_config, instances, now) if all_reported else None
            if key is not None:
                load.append(key)
        return Actions(tuple(unload), tuple(load))

    def idle_for(self, instance: InstanceId, now: float) -> float:
        """Return the seconds since an instance was last seen busy."""
        record = self._idle.get(instance)
        return 0.0 if record is None else now - record.idle_since

    def seconds_until_unload(
        self, model_config: ModelConfig, instances: Iterable[InstanceView], now: float
    ) -> float | None:
        """Return the seconds until a model's last instance is unloaded if no request arrives; None for never."""
        ttl = self._ttl_s(model_config)
        ready = [i for i in instances if i.state is InstanceState.READY]
        if not ttl or not ready or model_config.replicas.min or any(i.pinned for i in ready):
            return None
        return max(max(0.0, ttl - self.idle_for(i.id, now)) for i in ready)

    def _ttl_s(self, model_config: ModelConfig) -> float:
        ttl = self.ttls.get(model_config.id, model_config.ttl)
        return self.idle_ttl_s if ttl is None else ttl

    def _track_idle(self, by_model: Mapping[str, list[InstanceView]], now: float) -> None:
        records: dict[InstanceId, _IdleRecord] = {}
        for instances in by_model.values():
            for instance in instances:
                record = self._idle.get(instance.id)
                is_idle = instance.state is InstanceState.READY and not instance.in_flight
                if record is not None and is_idle and record.last_used == instance.last_used:
                    records[instance.id] = record
                else:
                    records[instance.id] = _IdleRecord(instance.last_used, now)
        self._idle = records

    def _expired(
        self, model_config: ModelConfig, instances: list[InstanceView], now: float
    ) -> list[InstanceView]:
        ttl = self._ttl_s(model_config)
        if not ttl:
            return []
        ready = [i for i in instances if i.state is InstanceState.READY]
        expired = [i for i in ready if not i.pinned and self.idle_for(i.id, now) >= ttl]
        expired.sort(key=lambda i: self._idle[i.id].idle_since)
        return expired[: max(0, len(ready) - model_config.replicas.min)]

    def _missing_replica(
        self, model_config: ModelConfig, instances: list[InstanceView], now: float
    ) -> LoadKey | None:
        present = [i for i in instances if i.state in {InstanceState.READY, InstanceState.LOADING}]
        ready = [i for i in present if i.state is InstanceState.READY and i.routable]
        if ready:  # requested through another gateway
            self.unloaded_models.discard(model_config.id)
        if model_config.id in self.unloaded_models:
            return None
        if len(present) < model_config.replicas.min:
            return LoadKey(model_config.id, replica=bool(present))
        slots = sum(i.parallel or 1 for i in ready)
        busy = bool(ready) and sum(i.in_flight for i in ready) >= slots
        if not busy or len(present) >= model_config.replicas.max or len(ready) < len(present):
            self._full_since.pop(model_config.id, None)
            return None
        full_since = self._full_since.setdefault(model_config.id, now)
        if now - full_since < self.scale_out_after_s:
            return None
        return LoadKey(model_config.id, replica=True, may_evict=False)


def preloads(model_configs: Iterable[ModelConfig]) -> tuple[LoadKey, ...]:
    """Return what to load when the gateway starts, where memory is available."""
    return tuple(
        LoadKey(model_config.id, may_evict=False)
        for model_config in model_configs
        if model_config.preload
    )
