"""Token counts under the names of all APIs."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from dialects_kit import (
    chunk,
    parse_events,
    parse_messages_stream,
    run_translator,
    sse_stream,
    usage_chunk,
)
from hypothesis import given
from hypothesis import strategies as st

from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.usage_scan import UsageScanner
from cortex_server.dialects.usage import Usage

# Each server with its report, and the tokens of prompt, completion, cache and reasoning in it.
_REPORTS: list[tuple[str, dict[str, Any], tuple[int, int, int, int]]] = [
    (
        "OpenAI",
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
        (100, 9, 64, 4),
    ),
    (
        "DeepSeek",
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        (100, 9, 64, 0),
    ),
    (
        "Moonshot",
        {"prompt_tokens": 100, "completion_tokens": 9, "cached_tokens": 64},
        (100, 9, 64, 0),
    ),
    (
        "a proxy of Anthropic",
        {"prompt_tokens": 100, "completion_tokens": 9, "cache_read_input_tokens": 64},
        (100, 9, 64, 0),
    ),
    (
        "Anthropic",
        {
            "input_tokens": 26,
            "output_tokens": 9,
            "cache_read_input_tokens": 64,
            "cache_creation_input_tokens": 10,
        },
        (100, 9, 64, 0),
    ),
    (
        "OpenAI Responses",
        {
            "input_tokens": 100,
            "output_tokens": 9,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens_details": {"reasoning_tokens": 4},
        },
        (100, 9, 64, 4),
    ),
    ("rerankers", {"total_tokens": 100}, (100, 0, 0, 0)),
    (
        "Perplexity",
        {"prompt_tokens": 1, "completion_tokens": 9, "reasoning_tokens": 4},
        (1, 9, 0, 4),
    ),
    (
        "more cached than sent",
        {"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 9},
        (5, 1, 5, 0),
    ),
]


@pytest.mark.parametrize(("server", "fields", "counts"), _REPORTS)
def test_usage_is_read_under_the_names_of_each_server(
    server: str, fields: dict[str, Any], counts: tuple[int, int, int, int]
) -> None:
    """In streams of chat completions and at the end of any other response."""
    prompt, completion, cached, reasoning = counts
    found = msgspec.convert(fields, Usage)
    assert (found.prompt, found.completion, found.cached, found.reasoning) == counts, server
    assert found.bounded_counts == (prompt, completion, cached)
    assert found.is_reported
    scanner = UsageScanner()
    scanner.feed(
        b'{"data":[' + b"1," * 10_000 + b'1],"usage":' + json.dumps(fields).encode() + b"}"
    )
    scanned = scanner.usage()
    assert scanned is not None
    assert scanned.bounded_counts == (prompt, completion, cached)
    assert reasoning == scanned.reasoning


def test_an_empty_report_is_none() -> None:
    """Some engines send an empty object, or nulls, in each chunk."""
    assert not Usage().is_reported
    repair = StreamRepair(response_id="r", client_wants_usage=False)
    repair.feed(
        sse_stream(chunk({"content": "a"}, usage={}), chunk({}, usage={"prompt_tokens": None}))
    )
    assert repair.usage is None


@pytest.mark.parametrize(
    ("meta", "counts"),
    [
        ({"tokens": {"input_tokens": 7, "output_tokens": 2}}, (7, 2, 0)),
        ({"billed_units": {"input_tokens": 7, "search_units": 1}}, (7, 0, 0)),
        ({"billed_units": {"total_tokens": 7}, "tokens": None}, (7, 0, 0)),
        ({"tokens": {"input_tokens": 7.0}, "billed_units": {"input_tokens": 5}}, (7, 0, 0)),
        ({"billed_units": {"search_units": 1}}, None),
        ({"api_version": {"version": "2"}}, None),
    ],
)
def test_usage_of_rankings_is_in_meta(
    meta: dict[str, Any], counts: tuple[int, int, int] | None
) -> None:
    """Cohere, vLLM and llama.cpp; what was computed comes before what is billed."""
    scanner = UsageScanner()
    scanner.feed(
        json.dumps({"results": [{"index": 0, "relevance_score": 0.5}], "meta": meta}).encode()
    )
    found = scanner.usage()
    assert (found and found.bounded_counts) == counts


@given(st.binary(max_size=300), st.integers(0, 300))
def test_scanning_never_fails(data: bytes, cut: int) -> None:
    """Whatever the response is."""
    scanner = UsageScanner()
    for piece in (data[:cut], b'"usage":{', data[cut:], b'"meta": {"tokens":'):
        scanner.feed(piece)
    scanner.usage()


def test_the_last_usage_counts() -> None:
    """A stream of images reports it in each event."""
    scanner = UsageScanner()
    for count in (1, 2):
        scanner.feed(b'data: {"usage": {"input_tokens": %d, "output_tokens": 0}}\n\n' % count)
    found = scanner.usage()
    assert found is not None
    assert found.prompt == 2


def test_usage_in_the_choice_is_read() -> None:
    """Moonshot sends it there at the end of a stream."""
    last = chunk(finish="stop")
    last["choices"][0]["usage"] = {"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 4}
    data = sse_stream(chunk({"content": "a"}), last)
    repair = StreamRepair(response_id="r", client_wants_usage=True)
    events = parse_events(run_translator(repair.feed, repair.end, data))
    assert json.loads(events[-2].data)["usage"]["prompt_tokens"] == 7
    writer = MessagesStreamWriter(message_id="m", model="m")
    found = parse_messages_stream(run_translator(writer.feed, writer.end, data)).usage
    assert (found["input_tokens"], found["cache_read_input_tokens"]) == (3, 4)
    aggregator = StreamAggregator(response_id="r")
    aggregator.feed(data)
    assert json.loads(aggregator.end())["usage"]["completion_tokens"] == 2
    assert aggregator.usage is not None


def test_usage_with_other_names_gets_those_of_openai() -> None:
    """Clients of chat completions read no others."""
    fields = {"input_tokens": 7, "output_tokens": 2}
    data = sse_stream(
        chunk({"content": "a"}), chunk(finish="stop"), usage_chunk() | {"usage": fields}
    )
    repair = StreamRepair(response_id="r", client_wants_usage=True)
    events = parse_events(run_translator(repair.feed, repair.end, data))
    found = json.loads(events[-2].data)["usage"]
    assert found == fields | {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert repair.repairs == {"usage_fields": 1}


def test_counts_are_bounded() -> None:
    """A counter never decreases, and a column of the database holds 63 bits."""
    assert Usage(prompt_tokens=-5, completion_tokens=10**30).bounded_counts == (0, 1 << 40, 0)
