"""The metrics reference: the metrics of the gateway and of the neuron, with their labels."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cortex_common.schema.certificates import Certificate
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
from cortex_common.supervision import TaskFailures
from cortex_server.metrics.exposition import GatewayCollector
from cortex_server.metrics.series import Metrics
from generator.text import page, sentence, table
from neuron_server.engine_metrics import COUNTERS, GAUGES, EngineReadings
from neuron_server.metrics import exposition

LABELS = {
    "model": "the model; `none` for requests that reached no model",
    "node": "the node; `none` for requests that reached no node, and for the gateway's own certificates",
    "code": "[error code](errors.md), or `engine_` and the HTTP status of an engine's error",
    "side": "whose fault the error is: `client`, `engine` or `cortex`",
    "kind": "of a repair, what was repaired, such as `missing_usage`; of an engine failure `crash`, `out_of_memory`, "
    "`killed`, `hung`, `failing` or the [error code](errors.md) of the failed load; of memory `used`, `free`, "
    "`reserved`, `other`, `headroom` or `available`",
    "harness": "kind of engine",
    "outcome": "of a load `ready` or `failed`; of a drain `idle` (completed) or `busy` (timed out); of a restart "
    "`restarted`, `kept` (another gateway had it done), `busy` or `failed`",
    "reason": "`eviction`, `idle`, `surplus`, `operator`, `defrag`, `drain` or `config_change`",
    "device": "index of the device on its node",
    "state": "`loading`, `ready`, `draining`, `stopping`, `stopped` or `failed`",
    "version": "version of cortex",
    "instance": "id of the instance",
    "file": "path of the file that contains the certificate",
    "task": "name of the background task",
}
_ABOUT = """The gateway serves these metrics on `metrics_listen` of [`[gateway]`](gateway-settings.md), by default
`http://127.0.0.1:9100/metrics`. [Grafana](../guides/grafana.md) describes how to scrape and plot them. Names of
counters end in `_total`; a histogram has the series `_bucket`, `_sum` and `_count`."""
_NEURON = """A neuron serves the readings of its own node at `/metrics` on its port, for hosts monitored without
a gateway. The gateway's metrics include all of them except the headroom."""


def metrics_page() -> str:
    """Return docs/reference/metrics.md."""
    gateway = GatewayCollector(Metrics(lambda: FleetSnapshot(version=0, at=0.0))).collect()
    rows = [(_name(f), sentence(f.documentation), f.type, _labels(f)) for f in gateway]
    neuron = [
        (_name(f), f.documentation, f.type, ", ".join(f"`{n}`" for n in f.samples[0].labels))
        for f in _neuron_families()
    ]
    header = ("name", "description", "type", "labels")
    labels = table(("label", "values"), ((f"`{k}`", v) for k, v in LABELS.items()))
    return page(
        "Metrics",
        _ABOUT,
        table(header, ((f"`{n}`", *rest) for n, *rest in rows)),
        "## Labels",
        labels,
        "## Metrics of a neuron",
        _NEURON,
        table(header, ((f"`{n}`", *rest) for n, *rest in neuron)),
    )


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _labels(family: Metric) -> str:
    # A family without samples exposes its label names nowhere else.
    names = vars(family)["_labelnames"]
    assert all(name in LABELS for name in names), names
    return ", ".join(f"`{n}`" for n in names) or "–"


def _neuron_families() -> Iterator[Metric]:
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
    engine = EngineReadings(info.instance_id, info.id, dict.fromkeys((*GAUGES, *COUNTERS), 0.0))
    text = exposition(
        status,
        (Certificate(file="", expires_at=0.0),),
        (TaskFailures("", 1, "", 0.0),),
        (engine,),
        0,
    )
    yield from text_string_to_metric_families(text.decode())
