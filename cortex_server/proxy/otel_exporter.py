"""Export of requests' spans to an OpenTelemetry collector; needs the extra `otel`.

The hot path records only ids and times. A span is built when its request has finished, and sent by the SDK's thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from typing_extensions import override

from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.ports import Spans
from cortex_server.proxy.trace_context import Span


class OtelExporter(Spans):
    """Exports two spans per request: the gateway's, and as its child the engine's."""

    def __init__(self) -> None:
        self._resource = Resource.create({"service.name": "cortex"})
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    @override
    def ended(self, span: Span, line: RequestLine, started: float, now: float) -> None:
        if not span.sampled:
            return
        at = time.time_ns()
        attributes = _attributes(line)
        self._export(
            f"POST {line.route}",
            span,
            (span.own, span.parent),
            (at - _ns(now - started), at),
            attributes,
            SpanKind.SERVER,
            line.outcome,
        )
        if span.engine_started is not None:
            self._export(
                f"engine {line.model}",
                span,
                (span.engine, span.own),
                (at - _ns(now - span.engine_started), at),
                attributes,
                SpanKind.CLIENT,
                line.outcome,
            )

    @override
    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's

    def _export(
        self,
        name: str,
        span: Span,
        ids: tuple[int, int],
        times: tuple[int, int],
        attributes: Mapping[str, str | int | float | bool],
        kind: SpanKind,
        outcome: str,
    ) -> None:
        flags = TraceFlags(TraceFlags.SAMPLED)
        own, parent = (
            SpanContext(span.trace, number, is_remote=False, trace_flags=flags) if number else None
            for number in ids
        )
        status = Status(StatusCode.OK if outcome == "ok" else StatusCode.ERROR)
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=own,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=kind,
                status=status,
                start_time=times[0],
                end_time=times[1],
            )
        )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(line: RequestLine) -> dict[str, str | int | float | bool]:
    """Return the span attributes, under OpenTelemetry's own names where it has one."""
    attributes: dict[str, str | int | float | bool | None] = {
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
    return {name: value for name, value in attributes.items() if value is not None}
