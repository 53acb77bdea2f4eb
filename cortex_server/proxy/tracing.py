"""Tracing of requests with OpenTelemetry, if a collector is configured."""

from __future__ import annotations

from collections.abc import Mapping

from cortex_common.errors import ConfigError
from cortex_server.proxy.ports import Spans

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def create_exporter(environ: Mapping[str, str]) -> Spans | None:
    """Return an exporter if the environment names a collector; the SDK reads the other OTEL_ variables.

    Raises:
        ConfigError: A collector is named, but the packages are not installed.
    """
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from cortex_server.proxy.otel_exporter import OtelExporter  # noqa: PLC0415 - an extra that may be missing
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{_ENDPOINTS[1]} is set, but {missing.name} is not installed",
            hints=("pip install 'cortex-gpu[otel]'",),
        ) from missing
    return OtelExporter()
