"""Tracing of requests with OpenTelemetry, if a collector is configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cortex_common.errors import ConfigError
from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.trace_context import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Spans(Protocol):
    """Exports the spans of finished requests."""

    def ended(self, span: Span, line: RequestLine, started: float, now: float) -> None:
        """Export a finished request.

        Args:
            span: Ids of its spans.
            line: Its access log line.
            started: When it began, by the event loop's time.
            now: The event loop's time.
        """
        ...

    def close(self) -> None:
        """Send the last spans; blocks."""
        ...


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
