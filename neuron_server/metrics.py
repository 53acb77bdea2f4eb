"""GET /metrics: the latest readings of the node's devices and its instances, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from cortex_common.schema.certificates import Certificate
from cortex_common.schema.hardware import DeviceReading
from cortex_common.schema.instances import InstanceState, ModelInfo, NodeStatus
from cortex_common.supervision import TaskFailures
from cortex_common.units import BYTES_PER_MIB
from neuron_server.engine_metrics import COUNTERS, GAUGES, EngineReadings

_MEMORY_KINDS = ("used", "free", "reserved", "other", "headroom", "available")


def exposition(
    status: NodeStatus,
    certificates: Iterable[Certificate],
    tasks: Iterable[TaskFailures],
    engines: Iterable[EngineReadings],
    write_failures: int,
) -> bytes:
    """Return the metrics of a node in Prometheus's text format.

    Args:
        status: the current status of the node.
        certificates: the certificates that the neuron uses.
        tasks: the failures of its background tasks.
        engines: what its engines report about themselves.
        write_failures: writes to its state directory that failed.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(status, certificates, tasks, engines, write_failures))
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(
        self,
        status: NodeStatus,
        certificates: Iterable[Certificate],
        tasks: Iterable[TaskFailures],
        engines: Iterable[EngineReadings],
        write_failures: int,
    ) -> None:
        self._engines = engines
        self._status = status
        self._write_failures = write_failures
        self._tasks = tasks
        self._certificates = certificates

    @override
    def collect(self) -> Iterator[Metric]:
        yield from _device_metrics(self._status.health.devices)
        yield from _instance_metrics(self._status.models)
        yield from _engine_metrics(self._engines)
        expiry = GaugeMetricFamily(
            "cortex_neuron_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate expires",
            labels=["file"],
        )
        for certificate in self._certificates:
            expiry.add_metric([certificate.file], certificate.expires_at)
        failures = CounterMetricFamily(
            "cortex_neuron_engine_failures",
            "Engines that crashed, hung or failed to load",
            labels=["model", "kind"],
        )
        for failure in self._status.failures:
            failures.add_metric([failure.model, failure.kind], failure.count)
        tasks = CounterMetricFamily(
            "cortex_neuron_task_failures",
            "Failures of background tasks, which are restarted",
            labels=["task"],
        )
        for failed in self._tasks:
            tasks.add_metric([failed.task], failed.count)
        writes = CounterMetricFamily(
            "cortex_neuron_state_write_failures",
            "Failed writes to the state directory, such as on a full disk",
        )
        writes.add_metric([], self._write_failures)
        yield from (expiry, failures, tasks, writes)


def _engine_metrics(engines: Iterable[EngineReadings]) -> Iterator[Metric]:
    labels = ["instance", "model"]
    gauges = {
        name: GaugeMetricFamily(f"cortex_neuron_engine_{name}", text, labels=labels)
        for name, text in GAUGES.items()
    }
    counters = {
        name: CounterMetricFamily(f"cortex_neuron_engine_{name}", text, labels=labels)
        for name, text in COUNTERS.items()
    }
    for engine in engines:
        values = [str(engine.instance), str(engine.model)]
        for name, value in engine.values.items():
            if name in gauges:
                gauges[name].add_metric(values, value)
            else:
                counters[name].add_metric(values, value)
    yield from gauges.values()
    yield from counters.values()


def _device_metrics(readings: Iterable[DeviceReading]) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "cortex_neuron_device_memory_bytes",
        "Memory of a device by kind",
        labels=["device", "kind"],
    )
    utilization = GaugeMetricFamily(
        "cortex_neuron_device_utilization_ratio",
        "Share of time in which the device was busy",
        labels=["device"],
    )
    temperature = GaugeMetricFamily(
        "cortex_neuron_device_temperature_celsius", "Temperature of the device", labels=["device"]
    )
    power = GaugeMetricFamily(
        "cortex_neuron_device_power_watts", "Power draw of the device", labels=["device"]
    )
    for reading in readings:
        device = str(reading.index)
        for kind in _MEMORY_KINDS:
            mib = getattr(reading, f"vram_{kind}_mb")
            memory.add_metric([device, kind], mib * BYTES_PER_MIB)
        if reading.utilization_pct is not None:
            utilization.add_metric([device], reading.utilization_pct / 100)
        if reading.temp_c is not None:
            temperature.add_metric([device], reading.temp_c)
        if reading.power_w is not None:
            power.add_metric([device], reading.power_w)
    yield from (memory, utilization, temperature, power)


def _instance_metrics(instances: Iterable[ModelInfo]) -> Iterator[Metric]:
    labels = ["instance", "model"]
    state = GaugeMetricFamily(
        "cortex_neuron_instance_state",
        "1 for the current state of an instance, 0 for the others",
        labels=[*labels, "state"],
    )
    memory = GaugeMetricFamily(
        "cortex_neuron_instance_memory_bytes",
        "Device memory that unloading the instance would free",
        labels=labels,
    )
    seconds = GaugeMetricFamily(
        "cortex_neuron_instance_load_seconds", "Duration of the instance's load", labels=labels
    )
    for info in instances:
        values = [str(info.instance_id), str(info.id)]
        for possible in InstanceState:
            state.add_metric([*values, possible], float(info.status is possible))
        memory.add_metric(values, info.vram_used_mb * BYTES_PER_MIB)
        if info.load_seconds is not None:
            seconds.add_metric(values, info.load_seconds)
    yield from (state, memory, seconds)
