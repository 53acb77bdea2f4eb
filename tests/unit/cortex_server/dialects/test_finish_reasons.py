"""What finish reasons mean for the clients of each API."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from dialects_kit import (
    chunk,
    parse_events,
    parse_messages_stream,
    parse_responses_stream,
    response_in_progress,
    responses_stream,
    run_translator,
    sse_stream,
)

from cortex_common.errors import CortexError, Unavailable, UpstreamFailed
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.finish_reasons import FinishKind
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.completion_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair

# (engine's word, OpenAI's, Anthropic's, why a response of the Responses API is incomplete)
_WORDS = [
    ("stop", "stop", "end_turn", None),
    ("eos", "stop", "end_turn", None),
    ("eos_token", "stop", "end_turn", None),
    ("STOP", "stop", "end_turn", None),
    ("COMPLETE", "stop", "end_turn", None),
    ("length", "length", "max_tokens", "max_output_tokens"),
    ("model_length", "length", "max_tokens", "max_output_tokens"),
    ("MAX_TOKENS", "length", "max_tokens", "max_output_tokens"),
    ("model_context_window_exceeded", "length", "max_tokens", "max_output_tokens"),
    ("repetition", "length", "max_tokens", "max_output_tokens"),
    ("content_filter", "content_filter", "refusal", "content_filter"),
    ("sensitive", "content_filter", "refusal", "content_filter"),
    ("SAFETY", "content_filter", "refusal", "content_filter"),
    ("guardrail_intervened", "content_filter", "refusal", "content_filter"),
    ("refusal", "content_filter", "refusal", "content_filter"),
    ("a word of tomorrow", "a word of tomorrow", "a word of tomorrow", "a word of tomorrow"),
]


def _whole(finish: str) -> bytes:
    message = {"role": "assistant", "content": "a"}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


def _chat(data: bytes) -> tuple[list[dict[str, Any]], StreamRepair]:
    repair = StreamRepair(response_id="r", client_wants_usage=False)
    events = parse_events(run_translator(repair.feed, repair.end, data))
    return [json.loads(event.data) for event in events if event.data != b"[DONE]"], repair


@pytest.mark.parametrize(("word", "openai", "anthropic", "reason"), _WORDS)
def test_finish_reasons_are_translated(
    word: str, openai: str, anthropic: str, reason: str | None
) -> None:
    """In streams, aggregated streams and whole responses, for clients of all three APIs."""
    data = sse_stream(chunk({"content": "a"}), chunk(finish=word))
    assert _chat(data)[0][-1]["choices"][0]["finish_reason"] == openai
    aggregator = StreamAggregator(response_id="r")
    aggregator.feed(data)
    assert json.loads(aggregator.end())["choices"][0]["finish_reason"] == openai
    assert (
        json.loads(repair_completion(_whole(word), "r")[0])["choices"][0]["finish_reason"] == openai
    )
    writer = MessagesStreamWriter(message_id="m", model="m")
    assert parse_messages_stream(run_translator(writer.feed, writer.end, data)).stop == anthropic
    assert (
        json.loads(to_message(_whole(word), message_id="m", model="m"))["stop_reason"] == anthropic
    )
    responses = responses_stream()
    last = parse_responses_stream(run_translator(responses.feed, responses.end, data)).last
    whole = to_response(_whole(word), response_in_progress(), now=lambda: 9)
    for found in (last, json.loads(msgspec.json.encode(whole))):
        assert found["incomplete_details"] == (reason and {"reason": reason})
        assert found["status"] == ("incomplete" if reason else "completed")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("abort", UpstreamFailed),
        ("error", UpstreamFailed),
        ("network_error", UpstreamFailed),
        ("canceled", UpstreamFailed),
        ("MALFORMED_FUNCTION_CALL", UpstreamFailed),
        ("insufficient_system_resource", Unavailable),
    ],
)
def test_failures_are_errors(word: str, kind: type[CortexError]) -> None:
    """Text before the failure is kept, and no client takes it for a complete response."""
    data = sse_stream(chunk({"content": "a"}), chunk({"content": "b"}, finish=word))
    events, repair = _chat(data)
    assert isinstance(repair.error, kind)
    assert [e["choices"][0]["delta"]["content"] for e in events[:-1]] == ["a", "b"]
    assert all(e["choices"][0]["finish_reason"] is None for e in events[:-1])
    assert word in events[-1]["error"]["message"]
    writer = MessagesStreamWriter(message_id="m", model="m")
    assert parse_messages_stream(run_translator(writer.feed, writer.end, data)).stop == "error"
    responses = responses_stream()
    assert (
        parse_responses_stream(run_translator(responses.feed, responses.end, data)).stop == "error"
    )
    aggregator = StreamAggregator(response_id="r")
    aggregator.feed(data)
    with pytest.raises(kind):
        aggregator.end()
    for translate in (
        lambda body: repair_completion(body, "r"),
        lambda body: to_message(body, message_id="m", model="m"),
        lambda body: to_response(body, response_in_progress(), now=lambda: 9),
    ):
        with pytest.raises(kind):
            translate(_whole(word))


@pytest.mark.parametrize(
    "word", ["tool_calls", "tool_use", "TOOL_CALL", "stop", "eos", "a new word"]
)
def test_tool_calls_are_the_reason_if_there_are_any(word: str) -> None:
    """Clients end their agent loop on any other reason."""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    data = sse_stream(chunk({"tool_calls": [call]}), chunk(finish=word))
    expected = "a new word" if word == "a new word" else "tool_calls"
    assert _chat(data)[0][-1]["choices"][0]["finish_reason"] == expected
    writer = MessagesStreamWriter(message_id="m", model="m")
    assert parse_messages_stream(run_translator(writer.feed, writer.end, data)).stop == "tool_use"


def test_case_and_separators_do_not_matter() -> None:
    """Gemini's words are in capitals."""
    assert finish_reasons.classify("Max-Tokens") is FinishKind.CUT
    assert finish_reasons.classify(" max tokens ") is FinishKind.CUT
    assert finish_reasons.classify("") is FinishKind.UNKNOWN
    assert finish_reasons.openai_word("function_call") == "function_call"
