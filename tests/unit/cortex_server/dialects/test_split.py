"""Whole completions as the events of a stream."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.split import completion_events


def call(index: int) -> dict[str, object]:
    """Return a tool call with an id of its own."""
    function = {"name": "f", "arguments": '{"a":1}'}
    return {"id": f"call_{index}", "type": "function", "function": function}


def aggregate(events: bytes) -> dict[str, object]:
    """Put the events together again."""
    aggregator = StreamAggregator(response_id="r")
    aggregator.feed(events)
    whole: dict[str, object] = json.loads(aggregator.end())
    return whole


@given(
    texts=st.lists(st.text(), min_size=1, max_size=3),
    reasoning=st.text(),
    calls=st.booleans(),
)
def test_what_is_split_is_put_together_again(texts: list[str], reasoning: str, calls: bool) -> None:
    """Texts, reasoning, calls, finish reasons and usage survive, for any number of choices."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "reasoning_content": reasoning}
            | ({"tool_calls": [call(index)]} if calls else {}),
            "finish_reason": "tool_calls" if calls else "length",
        }
        for index, text in enumerate(texts)
    ]
    body = json.dumps({"id": "1", "model": "m", "choices": choices, "usage": usage})
    whole = aggregate(completion_events(body.encode()))
    assert whole["usage"] == usage
    got_choices = whole["choices"]
    assert isinstance(got_choices, list)
    for index, (sent, got) in enumerate(zip(choices, got_choices, strict=True)):
        assert got["finish_reason"] == sent["finish_reason"]
        assert (got["message"]["content"] or "") == sent["message"]["content"]
        assert got["message"].get("reasoning_content", "") == reasoning
        assert got["message"].get("tool_calls", []) == ([call(index)] if calls else [])


def test_a_text_completion_stays_one() -> None:
    """Its chunks have a text, and no delta."""
    body = {"object": "text_completion", "choices": [{"text": "hi", "finish_reason": "stop"}]}
    whole = aggregate(completion_events(json.dumps(body).encode()))
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == "hi"  # type: ignore[index]


def test_a_missing_finish_reason_is_added() -> None:
    """A stream without one would count as broken off."""
    events = completion_events(b'{"choices":[{"message":{"content":"hi"}}]}')
    assert aggregate(events)["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
