"""Sample fleets with fixed values for tests of tables and screens."""

from __future__ import annotations

from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import (
    DeviceView,
    FleetSnapshot,
    InstanceView,
    ModelState,
    ModelView,
    NodeState,
    NodeView,
)
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_common.schema.requests import RequestList, RequestState, RequestView

NOW = 1_700_000_000.0
QWEN, LLAMA, GEMMA, PHI = (
    ModelId("Qwen/Qwen3-32B"),
    ModelId("meta/Llama-70B"),
    ModelId("google/gemma-3-12b"),
    ModelId("microsoft/phi-4"),
)


def _gpu(index: int, name: str, total: int, used: int, **more: object) -> DeviceView:
    return DeviceView(
        index=index,
        uuid=f"GPU-{name.rsplit(maxsplit=1)[-1].lower()}-{index}",
        kind=DeviceKind.CUDA,
        name=name,
        vram_total_mb=total,
        vram_used_mb=used,
        vram_free_mb=total - used,
        vram_available_mb=max(0, total - used - 512),
        vram_headroom_mb=512,
        **more,  # type: ignore[arg-type]  # any further field of the view
    )


def busy_fleet() -> FleetSnapshot:
    """Return three nodes: one busy, one with a lost device and a load in progress, one unreachable."""
    qwen = InstanceView(
        id=InstanceId("qwen-1"), model=QWEN, node="beast", harness="mistralrs",
        state=InstanceState.READY, devices=(0, 1), vram_used_mb=69_800, vram_by_device=(34_900, 34_900),
        url="http://beast:8100", context=32_768, parallel=8, load_seconds=41.2, in_flight=3,
        last_used=NOW - 1, started_at=NOW - 8000, pinned=True, requests=1234, tokens_in=900_000,
        tokens_out=410_000, reason="only beast has two free devices",
    )  # fmt: skip
    gemma = InstanceView(
        id=InstanceId("gemma-1"), model=GEMMA, node="beast", harness="llamacpp",
        state=InstanceState.READY, devices=(0,), vram_used_mb=12_000, vram_by_device=(12_000,),
        url="http://beast:8101", context=8_192, load_seconds=8.0, in_flight=0,
        last_used=NOW - 740, started_at=NOW - 5000, requests=17, errors=1,
    )  # fmt: skip
    llama = InstanceView(
        id=InstanceId("llama-1"), model=LLAMA, node="mule", harness="llamacpp",
        state=InstanceState.LOADING, devices=(0, 1), vram_used_mb=40_000, progress=0.61,
        stage="weights", eta_s=12.0, started_at=NOW - 20,
    )  # fmt: skip
    beast = NodeView(
        name="beast", endpoint="http://beast:9090", state=NodeState.UP, seen_at=NOW, hostname="beast",
        os="Fedora 43", kernel="6.17", driver_version="580.95", cuda_version="13.0",
        neuron_version="0.1.0", harnesses=("mistralrs", "llamacpp"),
        devices=(
            _gpu(0, "NVIDIA H200", 143_771, 47_400, utilization_pct=88, temp_c=63, power_w=512.0,
                 compute_capability="9.0", vram_other_mb=500),
            _gpu(1, "NVIDIA H200", 143_771, 34_900, utilization_pct=12, temp_c=51, power_w=210.0,
                 compute_capability="9.0"),
        ),
        instances=(qwen, gemma),
    )  # fmt: skip
    mule = NodeView(
        name="mule", endpoint="http://mule:9090", state=NodeState.UP, seen_at=NOW, hostname="mule",
        os="Fedora 43", kernel="6.17", driver_version="575.64", cuda_version="12.9",
        neuron_version="0.1.0", harnesses=("llamacpp",),
        devices=(
            _gpu(0, "NVIDIA RTX 4090", 24_564, 23_500, utilization_pct=100, temp_c=81,
                 vram_reserved_mb=300),
            _gpu(1, "NVIDIA RTX 4090", 24_564, 16_500, utilization_pct=100, temp_c=79),
            _gpu(2, "NVIDIA RTX 4090", 24_564, 0, health=DeviceHealth.LOST, reason="fell off the bus"),
        ),
        instances=(llama,), cordoned=True,
        warnings=("the mistral.rs build wants a newer driver",),
    )  # fmt: skip
    attic = NodeView(
        name="attic", endpoint="http://attic:9090", state=NodeState.UNREACHABLE,
        reason="connection refused", seen_at=NOW - 600,
    )  # fmt: skip
    return FleetSnapshot(
        version=7,
        at=NOW,
        nodes=(beast, mule, attic),
        models=(
            ModelView(
                QWEN, ModelState.READY, aliases=("qwen3",), harness="mistralrs", nodes=("beast",),
                instances=1, in_flight=3, requests=1234, context=32_768, vram_mb=69_800,
                pinned_on=("beast",), tokens_in=900_000, tokens_out=410_000, ttft_p50_ms=84.0,
                ttft_p95_ms=310.0,
            ),
            ModelView(
                GEMMA, ModelState.READY, harness="llamacpp", nodes=("beast",), instances=1,
                requests=17, errors=1, context=8_192, vram_mb=12_000,
            ),
            ModelView(LLAMA, ModelState.LOADING, harness="llamacpp", instances=1, waiting=3),
            ModelView(
                PHI, ModelState.FAILED, harness="llamacpp",
                error="no such file: /srv/models/phi-4.gguf",
            ),
        ),
        gateway_version="0.1.0",
        started_at=NOW - 90_000,
    )  # fmt: skip


def sample_requests() -> RequestList:
    """Return a request in each state, and successful and failed ones."""

    def request(number: int, state: RequestState, model: ModelId, **more: object) -> RequestView:
        return RequestView.model_validate(
            {"id": f"req-{number:04}", "route": "/v1/chat/completions", "state": state, "model": model,
             "key": "ci" if number % 2 else "ada", "started": NOW - number} | more
        )  # fmt: skip

    beast = {"node": "beast", "instance": "qwen-1"}
    return RequestList(
        at=NOW,
        active=(
            request(42, RequestState.DECODE, QWEN, **beast, ttft_ms=120, total_ms=42_000,
                    tokens_in=900, tokens_out=1880),
            request(12, RequestState.LOADING, LLAMA, queue_ms=12_000, total_ms=12_000, cold_start=True),
            request(3, RequestState.PREFILL, QWEN, **beast, queue_ms=40, total_ms=3000),
            request(1, RequestState.QUEUE, QWEN, queue_ms=1000, total_ms=1000),
        ),
        recent=(
            request(60, RequestState.DONE, QWEN, **beast, outcome="ok", ttft_ms=84, total_ms=5084,
                    tokens_in=70, tokens_out=200),
            request(61, RequestState.DONE, GEMMA, outcome="upstream_failed", total_ms=900),
        ),
    )  # fmt: skip


def sample_trail() -> tuple[AuditEntry, ...]:
    """Return the audit entries of a load by an operator."""
    return (
        AuditEntry(id=1, at=NOW - 40, actor="ada", event="load_requested", fields={"model": LLAMA}),
        AuditEntry(id=2, at=NOW - 40, actor="cortex", event="eviction_started", level="warn",
                   fields={"node": "mule", "victims": "phi-1", "model": LLAMA}),
        AuditEntry(id=3, at=NOW - 30, actor="node mule", event="instance_ready",
                   fields={"node": "mule", "model": LLAMA, "seconds": "31.2"}),
        AuditEntry(id=4, at=NOW - 9, actor="node mule", event="engine_crashed", level="error",
                   fields={"node": "mule", "instance": "phi-1", "kind": "out of memory"}),
    )  # fmt: skip


def empty_fleet() -> FleetSnapshot:
    """Return a fleet without nodes and models."""
    return FleetSnapshot(version=1, at=NOW)


def large_fleet(*, nodes: int, devices: int, models: int) -> FleetSnapshot:
    """Return a fleet of this size with every third model loaded."""
    instances: list[list[InstanceView]] = [[] for _ in range(nodes)]
    views = []
    for number in range(models):
        model = ModelId(f"team-{number % 7}/model-{number:03}")
        loaded = number % 3 == 0
        node, device = number % nodes, (number // nodes) % devices
        if loaded:
            instances[node].append(
                InstanceView(
                    id=InstanceId(f"i-{number}"), model=model, node=f"node{node}", harness="llamacpp",
                    state=InstanceState.READY, devices=(device,), vram_used_mb=9_000 + 13 * number,
                    vram_by_device=(9_000 + 13 * number,), in_flight=number % 4,
                    last_used=NOW - number, started_at=NOW - 10 * number,
                )
            )  # fmt: skip
        views.append(
            ModelView(
                model, ModelState.READY if loaded else ModelState.UNLOADED, harness="llamacpp",
                nodes=(f"node{node}",) if loaded else (), instances=int(loaded),
                in_flight=number % 4 if loaded else 0, requests=100 * number, vram_mb=9_000 + 13 * number,
            )
        )  # fmt: skip
    return FleetSnapshot(
        version=1,
        at=NOW,
        nodes=tuple(
            NodeView(
                name=f"node{n}", endpoint=f"http://node{n}:9090", state=NodeState.UP, seen_at=NOW,
                devices=tuple(
                    _gpu(
                        d, "NVIDIA H100", 81_559,
                        sum(i.vram_used_mb for i in instances[n] if d in i.devices),
                        utilization_pct=(17 * (n + d)) % 101, temp_c=40 + (n + d) % 30,
                    )
                    for d in range(devices)
                ),
                instances=tuple(instances[n]),
            )
            for n in range(nodes)
        ),
        models=tuple(views),
        gateway_version="0.1.0",
        started_at=NOW - 90_000,
    )  # fmt: skip
