"""What time alone makes due: unloading idle models, adding missing replicas, scaling out busy models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_server.placement.load_queue import LoadKey

_PRESENT = frozenset({InstanceState.READY, InstanceState.LOADING})


@dataclass(frozen=True, slots=True)
class Actions:
    """What is to be done.

    Attributes:
        unload: instances that have been idle for longer than their model's time to live.
        surplus: instances beyond `replicas.max`, since a node that was away is back.
        load: instances that are missing.
    """

    unload: tuple[InstanceView, ...] = ()
    surplus: tuple[InstanceView, ...] = ()
    load: tuple[LoadKey, ...] = ()


@dataclass(slots=True)
class _IdleRecord:
    last_used: float
    idle_since: float


@dataclass(slots=True)
class DesiredState:
    """Compares the fleet with what it should be, over time.

    Idle times are measured with the monotonic clock from when an instance was last seen busy, so a host clock that
    jumps unloads nothing. Instances on external upstreams do not count as replicas.

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
    _preloaded: set[str] = field(default_factory=set)
    _away: set[str] = field(default_factory=set)
    _may_exceed: set[str] = field(default_factory=set)

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
        absent: Counter[str] = Counter()
        for node in snapshot.nodes:
            if node.state is NodeState.UP and not node.upstream:
                for instance in node.instances:
                    by_model.setdefault(instance.model, []).append(instance)
            elif node.is_expected_back:
                absent.update(i.model for i in node.instances if i.state in _PRESENT)
        self._track_idle(by_model, now)
        self._track_returns(snapshot)
        all_reported = all(node.state is not NodeState.CONNECTING for node in snapshot.nodes)
        unload: list[InstanceView] = []
        surplus: list[InstanceView] = []
        load: list[LoadKey] = []
        for model_config in model_configs:
            instances = by_model.get(model_config.id, [])
            unload += self._expired(model_config, instances, now)
            surplus += self._surplus(model_config, instances)
            preload = self._due_preload(model_config, instances, snapshot.nodes)
            if preload is not None:
                load.append(preload)
            away = absent[model_config.id]
            key = (
                self._missing_replica(model_config, instances, away, now) if all_reported else None
            )
            if key is not None:
                load.append(key)
        return Actions(tuple(unload), tuple(surplus), tuple(load))

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

    def _track_returns(self, snapshot: FleetSnapshot) -> None:
        """Note the models of nodes that are back: they may have been loaded elsewhere in the meantime."""
        for node in snapshot.nodes:
            if node.state is NodeState.UP and node.name in self._away:
                self._may_exceed.update(i.model for i in node.instances)
        self._away = {n.name for n in snapshot.nodes if n.state is NodeState.UNREACHABLE}

    def _surplus(
        self, model_config: ModelConfig, instances: list[InstanceView]
    ) -> list[InstanceView]:
        """Return the idle instances beyond `replicas.max`, least recently used first."""
        if model_config.id not in self._may_exceed:
            return []
        present = [i for i in instances if i.state in _PRESENT]
        excess = len(present) - model_config.replicas.max
        if excess <= 0:
            self._may_exceed.discard(model_config.id)
            return []
        ready = [i for i in present if i.state is InstanceState.READY]
        idle = [i for i in ready if not i.pinned and not i.in_flight]
        return sorted(idle, key=lambda i: i.last_used)[: min(excess, len(ready) - 1)]

    def _due_preload(
        self,
        model_config: ModelConfig,
        instances: list[InstanceView],
        nodes: Iterable[NodeView],
    ) -> LoadKey | None:
        """Return the load of a model with `preload` that has not been loaded yet, once a node for it is up."""
        model = model_config.id
        if not model_config.preload:
            self._preloaded.discard(model)
        elif model not in self._preloaded:
            if instances or model in self.unloaded_models:
                self._preloaded.add(model)
            elif any(
                n.state is NodeState.UP
                and model_config.harness in n.harnesses
                and n.name in (model_config.nodes or {n.name})
                for n in nodes
            ):
                return LoadKey(model, may_evict=False)
        return None

    def _missing_replica(
        self, model_config: ModelConfig, instances: list[InstanceView], away: int, now: float
    ) -> LoadKey | None:
        """Return the load of a further instance that is due; `away` instances are on nodes that are expected back."""
        present = [i for i in instances if i.state in _PRESENT]
        ready = [i for i in present if i.state is InstanceState.READY and i.routable]
        if ready:  # requested through another gateway
            self.unloaded_models.discard(model_config.id)
        if model_config.id in self.unloaded_models:
            return None
        if len(present) + away < model_config.replicas.min:
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
