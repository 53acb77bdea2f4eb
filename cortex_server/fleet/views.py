"""Builds the views of a snapshot from what nodes report and what the gateway counts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import (
    DeviceView,
    EngineView,
    InstanceView,
    ModelState,
    ModelView,
    NodeState,
    NodeView,
)
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import AttachedEngine, InstanceState, ModelId, ModelInfo
from cortex_server.fleet.circuit_breaker import BreakerState
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.metrics.series import Metrics

_BEST_FIRST = (
    (InstanceState.READY, ModelState.READY),
    (InstanceState.LOADING, ModelState.LOADING),
    (InstanceState.DRAINING, ModelState.DRAINING),
    (InstanceState.STOPPING, ModelState.STOPPING),
    (InstanceState.FAILED, ModelState.FAILED),
)


def with_host(view: NodeView, discovery: Discovery) -> NodeView:
    """Return the node's view with what it reported about its host."""
    return replace(
        view,
        hostname=discovery.hostname,
        os=discovery.os,
        kernel=discovery.kernel,
        driver_version=discovery.driver_version,
        cuda_version=discovery.cuda_version,
        neuron_version=discovery.neuron_version,
        harnesses=discovery.harnesses,
        harness_kinds={name: h.device_kinds for name, h in discovery.harness_info.items()},
        keyless_harnesses=tuple(n for n, h in discovery.harness_info.items() if not h.takes_key),
        warnings=tuple(w.message for w in discovery.warnings),
        certificates=discovery.certificates,
    )


def device_views(discovery: Discovery, health: Health) -> tuple[DeviceView, ...]:
    """Return each device with its reading; a device without one shows zeros."""
    readings = {r.index: r.model_dump() for r in health.devices}
    return tuple(
        DeviceView(**(device.model_dump() | readings.get(device.index, {})))
        for device in discovery.devices
    )


def engine_view(engine: AttachedEngine) -> EngineView:
    """Return an attached engine as its node reports it."""
    return EngineView(
        harness=engine.harness,
        reachable=engine.reachable,
        restartable=engine.restartable,
        restarting=engine.restarting,
        cycles=engine.cycles,
    )


def instance_view(info: ModelInfo, node: str, *, pinned: bool) -> InstanceView:
    """Return an instance as its node reports it."""
    return InstanceView(
        id=info.instance_id,
        model=info.id,
        node=node,
        harness=info.harness,
        state=info.status,
        devices=info.devices,
        vram_used_mb=info.vram_used_mb,
        vram_by_device=info.vram_by_device,
        vram_measured_mb=info.vram_measured_mb,
        vram_peak_mb=info.vram_peak_mb,
        vram_granted_mb=info.vram_granted_mb,
        grows=info.grows,
        failure=info.failure,
        config=info.config,
        url=info.url,
        context=info.context,
        parallel=info.parallel,
        progress=info.progress,
        stage=info.stage,
        eta_s=info.eta_s,
        load_seconds=info.load_seconds,
        in_flight=info.in_flight,
        last_used=info.started_at,
        started_at=info.started_at,
        pinned=pinned,
        error=info.error,
        engine_version=info.engine_version,
    )


def with_endpoint(view: InstanceView, endpoint: Endpoint) -> InstanceView:
    """Return the instance with what its endpoint knows: how busy it is, what it did, and whether it gets requests."""
    failing = endpoint.breaker.state is not BreakerState.CLOSED
    return replace(
        view,
        state=InstanceState.DRAINING if endpoint.draining else view.state,
        in_flight=endpoint.total_in_flight + endpoint.foreign.requests,
        last_used=endpoint.last_used,
        requests=endpoint.counts.requests,
        errors=endpoint.counts.errors,
        tokens_in=endpoint.counts.tokens_in,
        tokens_out=endpoint.counts.tokens_out,
        failing=endpoint.breaker.reason if failing else None,
    )


def model_views(
    model_configs: Iterable[ModelConfig],
    nodes: tuple[NodeView, ...],
    waiting: Callable[[ModelId], int],
    metrics: Metrics,
) -> tuple[ModelView, ...]:
    """Return each configured model, then those that nodes run without a model config."""
    by_model: dict[str, list[InstanceView]] = {
        model_config.id: [] for model_config in model_configs
    }
    known = {model_config.id: model_config for model_config in model_configs}
    for node in nodes:
        if node.state is NodeState.UP:
            for instance in node.instances:
                by_model.setdefault(instance.model, []).append(instance)
    return tuple(
        _model_view(ModelId(model), known.get(model), instances, waiting(ModelId(model)), metrics)
        for model, instances in by_model.items()
    )


def _model_view(
    model: ModelId,
    model_config: ModelConfig | None,
    instances: list[InstanceView],
    waiting: int,
    metrics: Metrics,
) -> ModelView:
    states = {i.state for i in instances}
    ready = [i for i in instances if i.state is InstanceState.READY and i.routable]
    totals = metrics.totals(model)
    return ModelView(
        id=model,
        state=next((m for s, m in _BEST_FIRST if s in states), ModelState.UNLOADED),
        aliases=model_config.aliases if model_config else (),
        harness=model_config.harness if model_config else instances[0].harness,
        nodes=tuple(dict.fromkeys(i.node for i in ready)),
        instances=sum(i.state is not InstanceState.STOPPED for i in instances),
        waiting=waiting,
        in_flight=sum(i.in_flight for i in instances),
        requests=totals.requests,
        errors=totals.errors,
        tokens_in=totals.tokens_in,
        tokens_out=totals.tokens_out,
        ttft_p50_ms=totals.ttft_p50_ms,
        ttft_p95_ms=totals.ttft_p95_ms,
        context=next(
            (i.context for i in ready if i.context), model_config.context if model_config else None
        ),
        vram_mb=max(
            (i.vram_used_mb for i in ready), default=model_config.vram_mb if model_config else None
        ),
        pinned_on=model_config.pinned_on if model_config else (),
        error=next((i.error for i in instances if i.error), None),
    )
