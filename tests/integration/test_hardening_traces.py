"""Requests as spans of distributed traces, exported to a collector."""

from __future__ import annotations

import asyncio
import gzip

import httpx
from rigs.engine import scripted_engine
from rigs.gateway import gateway_process, neuron_table
from rigs.neuron import scripted_neuron
from rigs.server import serving

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "PR0MPT"}], "stream": True}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """OTLP collector over HTTP."""

    def __init__(self) -> None:
        self.spans = []
        self.raw = b""
        self.came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receive exports."""
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire

        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                body = gzip.decompress(body) if b"content-encoding: gzip" in head else body
                self.raw += body
                export = wire.ExportTraceServiceRequest.FromString(body)
                for resource in export.resource_spans:
                    for scope in resource.scope_spans:
                        self.spans += scope.spans
                self.came.set()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def test_a_request_is_two_spans_in_its_callers_trace(tmp_path):
    """The gateway's span is a child of the caller's and the parent of the engine's; unsampled traces are forwarded."""
    collector = Collector()
    async with (
        serving(collector.serve) as url,
        scripted_engine() as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        gateway_process(
            tmp_path,
            neuron_table("n", neuron.url),
            environ={"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"},
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        await gateway.until(lambda s: bool(s.instances()))
        for sampled in ("01", "00"):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{sampled}", "tracestate": "a=b"}
            assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200
        async with asyncio.timeout(20):
            await collector.came.wait()
        asked, quiet = (await engine.call(0)).head, (await engine.call(1)).head
    outer, inner = sorted(collector.spans, key=lambda span: span.name != f"POST {CHAT}")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert outer.parent_span_id.hex() == PARENT
    assert inner.parent_span_id == outer.span_id
    expected = f"traceparent: 00-{TRACE}-{inner.span_id.hex()}-01\r\n"
    assert expected.encode() in asked
    assert asked.count(b"traceparent") == 1
    assert b"tracestate: a=b\r\n" in asked
    assert f"00-{TRACE}-".encode() in quiet
    assert b"-00\r\n" in quiet
    facts = {a.key: a.value for a in outer.attributes}
    assert facts["gen_ai.request.model"].string_value == "m"
    assert facts["gen_ai.usage.input_tokens"].int_value == 7
    assert facts["cortex.node"].string_value == "n"
    assert outer.end_time_unix_nano >= inner.end_time_unix_nano >= inner.start_time_unix_nano
    assert b"PR0MPT" not in collector.raw
