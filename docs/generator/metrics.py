"""The reference of all metrics: the families that a gateway and a neuron hand out, with their labels."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cortex_common.net.tls import Certificate
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.hardware import DeviceReading, Health
from cortex_common.schema.instances import (
    EngineFailures,
    InstanceId,
    InstanceState,
    ModelId,
    ModelInfo,
    NodeStatus,
)
from cortex_server.metrics.exposition import GatewayCollector
from cortex_server.metrics.series import Metrics
from generator.text import page, sentence, table
from neuron_server.metrics import exposition

LABELS = {
    "model": "the model; `none` for requests that never got to one",
    "node": "the node; `none` for requests that never got to one, and for the gateway's own",
    "code": "[error code](errors.md), or `engine_` and the status that an engine answered",
    "side": "whose fault it is: `client`, `engine` or `cortex`",
    "kind": "what was mended, such as `missing_usage`; of an engine how it ended, such as `crash`, `out_of_memory`, "
    "`killed` or `hung`, or the [code](errors.md) of what ended its load",
    "harness": "kind of engine",
    "outcome": "of a load `ready` or `failed`; of a drain `idle` (done) or `busy` (given up)",
    "reason": "`room` (an eviction), `idle`, `operator`, `defrag`, `drain` or `model_config`",
    "device": "index of the device on its node",
    "state": "loading, ready, draining, stopping, stopped or failed",
    "version": "of cortex",
    "what": "used, free, reserved, other, headroom or available",
    "instance": "the instance",
    "file": "path of the file that the certificate was read from",
}
_ABOUT = """The gateway serves these on `metrics_listen` of [`[gateway]`](gateway-settings.md), by itself on
`http://127.0.0.1:9100/metrics`. [Grafana](../guides/grafana.md) tells how to have them read and drawn. A counter's name
ends in `_total`; a histogram has the series `_bucket`, `_sum` and `_count`."""
_NEURON = """A neuron serves its own readings at `/metrics` on its port, for hosts that are watched without a gateway.
The gateway's metrics have all of it but the headroom."""


def metrics_page() -> str:
    """docs/reference/metrics.md."""
    gateway = GatewayCollector(Metrics(lambda: FleetSnapshot(version=0, at=0.0))).collect()
    rows = [(_name(f), sentence(f.documentation), f.type, _labels(f)) for f in gateway]
    of_node = [
        (_name(f), f.documentation, f.type, ", ".join(f"`{n}`" for n in f.samples[0].labels))
        for f in _of_neuron()
    ]
    header = ("name", "what it is", "type", "labels")
    labels = table(("label", "values"), ((f"`{k}`", v) for k, v in LABELS.items()))
    return page(
        "Metrics",
        _ABOUT,
        table(header, ((f"`{n}`", *rest) for n, *rest in rows)),
        "## Labels",
        labels,
        "## Of a neuron",
        _NEURON,
        table(header, ((f"`{n}`", *rest) for n, *rest in of_node)),
    )


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _labels(family: Metric) -> str:
    # A family without samples tells its labels nowhere else.
    names = vars(family)["_labelnames"]
    assert all(name in LABELS for name in names), names
    return ", ".join(f"`{n}`" for n in names) or "–"


def _of_neuron() -> Iterator[Metric]:
    reading = DeviceReading(
        index=0, vram_used_mb=0, vram_free_mb=0, utilization_pct=0, temp_c=0, power_w=0
    )
    info = ModelInfo(
        id=ModelId("m"),
        harness="h",
        status=InstanceState.READY,
        instance_id=InstanceId("i"),
        load_seconds=1.0,
    )
    status = NodeStatus(
        health=Health(uptime_secs=0, devices=(reading,)),
        models=(info,),
        failures=(EngineFailures(info.id, "crash", 1),),
    )
    yield from text_string_to_metric_families(
        exposition(status, (Certificate(file="", ends_at=0.0),)).decode()
    )
