"""Spans of requests, sent to an OpenTelemetry collector; needs the extra `otel`.

The hot path notes ids and times alone; a span is built when its request has ended, and sent by the SDK's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.trace_context import Span


class Exported:
    """Two spans a request: the gateway's, and in it the one in which the engine worked."""

    def __init__(self) -> None:
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
            SpanKind.SERVER,
            line.outcome,
        )
        if span.asked_at is not None:
            self._tell(
                f"engine {line.model}",
                span,
                (span.engine, span.own),
                (at - _ns(now - span.asked_at), at),
                facts,
                SpanKind.CLIENT,
                line.outcome,
            )

    def close(self) -> None:
        """See `Spans`."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's

    def _tell(
        self,
        name: str,
        span: Span,
        ids: tuple[int, int],
        times: tuple[int, int],
        facts: Mapping[str, str | int | float | bool],
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
