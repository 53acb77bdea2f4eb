"""Whether OpenTelemetry is told of requests: where its packages are installed and a collector is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cortex_common.errors import ConfigError
from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.trace_context import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Spans(Protocol):
    """Where ended requests are told to."""

    def ended(self, span: Span, line: RequestLine, started: float, now: float) -> None:
        """A request has ended.

        Args:
            span: its ids.
            line: what the journal tells of it.
            started: when it began, by the event loop's time.
            now: the event loop's time.
        """
        ...

    def close(self) -> None:
        """Send the last ones; blocks."""
        ...


def spans(environ: Mapping[str, str]) -> Spans | None:
    """An exporter, where the environment names a collector; its other OTEL_ variables are the SDK's.

    Raises:
        ConfigError: a collector is named and the packages are not there.
    """
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from cortex_server.proxy.otel_exporter import Exported  # noqa: PLC0415 - an extra that may not be there
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{_ENDPOINTS[1]} is set, but {missing.name} is not installed",
            hints=("pip install 'cortex-gpu[otel]'",),
        ) from missing
    return Exported()
