"""What is due with time alone: models that nobody asks for, replicas that are missing, models that are too busy."""

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
        want: instances that are missing.
    """

    unload: tuple[InstanceView, ...] = ()
    want: tuple[LoadKey, ...] = ()


@dataclass(slots=True)
class _Idle:
    last_used: float
    since: float


@dataclass(slots=True)
class DesiredState:
    """Watches over time.

    Idle times are counted by the monotonic clock from when an instance was seen to be used, so a host clock that
    jumps unloads nothing.

    Attributes:
        idle_ttl_s: for models whose profile does not say; 0 never.
        scale_out_after_s: for how long all slots must be taken before a further instance is wanted.
        ttls: by model, what an operator said when it was loaded; stands until it is said anew.
        ended: models that an operator unloaded; none of them is missed until somebody asks for one again.
    """

    idle_ttl_s: float
    scale_out_after_s: float
    ttls: dict[str, float] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    _idle: dict[InstanceId, _Idle] = field(default_factory=dict)
    _full: dict[str, float] = field(default_factory=dict)

    def due(
        self, snapshot: FleetSnapshot, model_configs: Iterable[ModelConfig], now: float
    ) -> Actions:
        """What is due.

        Args:
            snapshot: the fleet now.
            model_configs: of the catalogue.
            now: monotonic seconds.
        """
        of_model: dict[str, list[InstanceView]] = {}
        for node in snapshot.nodes:
            if node.state is NodeState.UP:
                for instance in node.instances:
                    of_model.setdefault(instance.model, []).append(instance)
        self._watch(of_model, now)
        all_told = all(node.state is not NodeState.CONNECTING for node in snapshot.nodes)
        unload: list[InstanceView] = []
        want: list[LoadKey] = []
        for model_config in model_configs:
            instances = of_model.get(model_config.id, [])
            unload += self._idle_too_long(model_config, instances, now)
            key = self._missing(model_config, instances, now) if all_told else None
            if key is not None:
                want.append(key)
        return Actions(tuple(unload), tuple(want))

    def idle_for(self, instance: InstanceId, now: float) -> float:
        """Seconds since it was last seen to be used."""
        known = self._idle.get(instance)
        return 0.0 if known is None else now - known.since

    def ends_in(
        self, model_config: ModelConfig, instances: Iterable[InstanceView], now: float
    ) -> float | None:
        """Seconds until the last of a model's instances goes, if nobody asks for it; None for never."""
        ttl = self._ttl_s(model_config)
        ready = [i for i in instances if i.state is InstanceState.READY]
        if not ttl or not ready or model_config.replicas.min or any(i.pinned for i in ready):
            return None
        return max(max(0.0, ttl - self.idle_for(i.id, now)) for i in ready)

    def _ttl_s(self, model_config: ModelConfig) -> float:
        said = self.ttls.get(model_config.id, model_config.ttl)
        return self.idle_ttl_s if said is None else said

    def _watch(self, of_model: Mapping[str, list[InstanceView]], now: float) -> None:
        seen: dict[InstanceId, _Idle] = {}
        for instances in of_model.values():
            for i in instances:
                known = self._idle.get(i.id)
                quiet = i.state is InstanceState.READY and not i.in_flight
                if known is not None and quiet and known.last_used == i.last_used:
                    seen[i.id] = known
                else:
                    seen[i.id] = _Idle(i.last_used, now)
        self._idle = seen

    def _idle_too_long(
        self, model_config: ModelConfig, instances: list[InstanceView], now: float
    ) -> list[InstanceView]:
        ttl = self._ttl_s(model_config)
        if not ttl:
            return []
        ready = [i for i in instances if i.state is InstanceState.READY]
        old = [i for i in ready if not i.pinned and self.idle_for(i.id, now) >= ttl]
        old.sort(key=lambda i: self._idle[i.id].since)
        return old[: max(0, len(ready) - model_config.replicas.min)]

    def _missing(
        self, model_config: ModelConfig, instances: list[InstanceView], now: float
    ) -> LoadKey | None:
        here = [i for i in instances if i.state in {InstanceState.READY, InstanceState.LOADING}]
        ready = [i for i in here if i.state is InstanceState.READY]
        if ready:  # somebody asked another gateway for it
            self.ended.discard(model_config.id)
        if model_config.id in self.ended:
            return None
        if len(here) < model_config.replicas.min:
            return LoadKey(model_config.id, replica=bool(here))
        slots = sum(i.parallel or 1 for i in ready)
        busy = bool(ready) and sum(i.in_flight for i in ready) >= slots
        if not busy or len(here) >= model_config.replicas.max or len(ready) < len(here):
            self._full.pop(model_config.id, None)
            return None
        since = self._full.setdefault(model_config.id, now)
        if now - since < self.scale_out_after_s:
            return None
        return LoadKey(model_config.id, replica=True, may_evict=False)


def preloads(model_configs: Iterable[ModelConfig]) -> tuple[LoadKey, ...]:
    """What is loaded when the gateway starts, where there is room."""
    return tuple(LoadKey(p.id, may_evict=False) for p in model_configs if p.preload)
