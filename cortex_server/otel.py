"""Spans of requests for OpenTelemetry, where its packages are installed and a collector is named.

The hot path notes ids and times alone; a span is built when its request has ended, and sent by the SDK's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from cortex_common.errors import ConfigError
from cortex_server.dataplane.journal import RequestLine
from cortex_server.dataplane.traceparent import Span

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
        return _Exported()
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{_ENDPOINTS[1]} is set, but {missing.name} is not installed",
            hints=("pip install 'cortex-gpu[otel]'",),
        ) from missing


class _Exported:
    """Two spans a request: the gateway's, and in it the one in which the engine worked."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api = trace
        self._made = ReadableSpan
        self._resource = Resource.create({"service.name": "cortex"})
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def ended(self, span: Span, line: RequestLine, started: float, now: float) -> None:
        """See `Spans`."""
        if not span.sampled:
            return
        at = time.time_ns()
        facts = _attributes(line)
        self._tell(
            f"POST {line.route}",
            span,
            (span.own, span.parent),
            (at - _ns(now - started), at),
            facts,
            self._api.SpanKind.SERVER,
            line.outcome,
        )
        if span.asked_at is not None:
            self._tell(
                f"engine {line.model}",
                span,
                (span.engine, span.own),
                (at - _ns(now - span.asked_at), at),
                facts,
                self._api.SpanKind.CLIENT,
                line.outcome,
            )

    def close(self) -> None:
        """See `Spans`."""
        self._processor.shutdown()

    def _tell(
        self,
        name: str,
        span: Span,
        ids: tuple[int, int],
        times: tuple[int, int],
        facts: Mapping[str, str | int | float | bool],
        kind: object,
        outcome: str,
    ) -> None:
        api = self._api
        flags = api.TraceFlags(api.TraceFlags.SAMPLED)
        own, parent = (
            api.SpanContext(span.trace, number, is_remote=False, trace_flags=flags) if number else None
            for number in ids
        )
        status = api.Status(api.StatusCode.OK if outcome == "ok" else api.StatusCode.ERROR)
        self._processor.on_end(
            self._made(
                name=name,
                context=own,
                parent=parent,
                resource=self._resource,
                attributes=facts,
                kind=kind,
                status=status,
                start_time=times[0],
                end_time=times[1],
            )
        )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(line: RequestLine) -> dict[str, str | int | float | bool]:
    """OpenTelemetry's own names where it has one."""
    facts: dict[str, str | int | float | bool | None] = {
        "http.route": line.route,
        "gen_ai.request.model": line.model,
        "gen_ai.usage.input_tokens": line.prompt_tokens,
        "gen_ai.usage.output_tokens": line.completion_tokens,
        "cortex.request": line.request,
        "cortex.key": line.key,
        "cortex.node": line.node,
        "cortex.instance": line.instance,
        "cortex.reason": line.reason,
        "cortex.cold_start": line.cold_start,
        "cortex.queue_ms": line.queue_ms,
        "cortex.outcome": line.outcome,
    }
    return {name: value for name, value in facts.items() if value is not None}
