"""GET /metrics: the node's latest reading and its instances, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex_common.net.tls import Certificate
from cortex_common.schema.instances import InstanceState, NodeStatus


class _NodeCollector(Collector):
    def __init__(self, status: NodeStatus, certificates: Iterable[Certificate]) -> None:
        self._status = status
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        yield from self._devices()
        yield from self._instances()
        ends = GaugeMetricFamily(
            "cortex_neuron_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate ends",
            labels=["file"],
        )
        for certificate in self._certificates:
            ends.add_metric([certificate.file], certificate.ends_at)
        failures = CounterMetricFamily(
            "cortex_neuron_engine_failures",
            "Engines that crashed, hung or could not be loaded",
            labels=["model", "kind"],
        )
        for failed in self._status.failures:
            failures.add_metric([failed.model, failed.kind], failed.count)
        yield from (ends, failures)

    def _devices(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "cortex_neuron_vram_mb", "MiB of a device, by what they are", labels=["device", "what"]
        )
        usage = GaugeMetricFamily(
            "cortex_neuron_utilization_pct", "How busy a device is", labels=["device"]
        )
        heat = GaugeMetricFamily("cortex_neuron_temp_c", "Degrees Celsius", labels=["device"])
        power = GaugeMetricFamily("cortex_neuron_power_w", "Watts", labels=["device"])
        for reading in self._status.health.devices:
            device = str(reading.index)
            for what in ("used", "free", "reserved", "other", "headroom", "available"):
                memory.add_metric([device, what], getattr(reading, f"vram_{what}_mb"))
            for family, value in (
                (usage, reading.utilization_pct),
                (heat, reading.temp_c),
                (power, reading.power_w),
            ):
                if value is not None:
                    family.add_metric([device], value)
        yield from (memory, usage, heat, power)

    def _instances(self) -> Iterator[Metric]:
        labels = ["instance", "model"]
        state = GaugeMetricFamily(
            "cortex_neuron_instance_state",
            "1 for the state that an instance is in",
            labels=[*labels, "state"],
        )
        memory = GaugeMetricFamily(
            "cortex_neuron_instance_vram_mb", "MiB that its end would give back", labels=labels
        )
        seconds = GaugeMetricFamily(
            "cortex_neuron_instance_load_seconds", "What its load took", labels=labels
        )
        for info in self._status.models:
            names = [str(info.instance_id), str(info.id)]
            for possible in InstanceState:
                state.add_metric([*names, possible], float(info.status is possible))
            memory.add_metric(names, info.vram_used_mb)
            if info.load_seconds is not None:
                seconds.add_metric(names, info.load_seconds)
        yield from (state, memory, seconds)


def exposition(status: NodeStatus, certificates: Iterable[Certificate]) -> bytes:
    """The status as Prometheus scrapes it, and when certificates end."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(status, certificates))
    return generate_latest(registry)
