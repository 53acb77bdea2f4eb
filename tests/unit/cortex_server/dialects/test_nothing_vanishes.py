"""Whatever an engine sends: its text reaches the client, or the client gets an error."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    split_bytes,
    sse_stream,
    usage,
    with_junk,
)
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import CortexError
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.completion_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair

Received = tuple[str, str] | None
"""Reasoning and visible text as a client gets them; None if it gets an error."""


def _from_repair(data: bytes, cuts: list[int]) -> Received:
    repair = StreamRepair(response_id="r", client_wants_usage=False)
    out = run_translator(repair.feed, repair.end, data, cuts)
    if repair.error is not None:
        return None
    reasoning = text = ""
    for event in parse_events(out)[:-1]:
        for choice in json.loads(event.data)["choices"]:
            delta = choice.get("delta") or {}
            reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            text += delta.get("content") or choice.get("text") or ""
    return reasoning, text


def _from_messages(data: bytes, cuts: list[int]) -> Received:
    writer = MessagesStreamWriter(message_id="m", model="m")
    parsed = parse_messages_stream(run_translator(writer.feed, writer.end, data, cuts))
    return None if parsed.stop == "error" else _from_blocks(parsed.blocks)


def _from_responses(data: bytes, cuts: list[int]) -> Received:
    writer = responses_stream()
    parsed = parse_responses_stream(run_translator(writer.feed, writer.end, data, cuts))
    return None if parsed.stop == "error" else _from_blocks(parsed.blocks)


def _from_blocks(blocks: list[tuple[str, str, tuple[str, ...]]]) -> Received:
    return (
        "".join(content for kind, content, _ in blocks if kind == "thinking"),
        "".join(content for kind, content, _ in blocks if kind == "text"),
    )


def _from_aggregator(data: bytes, cuts: list[int]) -> Received:
    aggregator = StreamAggregator(response_id="r")
    for piece in split_bytes(data, cuts):
        aggregator.feed(piece)
    try:
        message = json.loads(aggregator.end())["choices"][0]["message"]
    except CortexError:
        return None
    return message.get("reasoning_content") or "", message["content"] or ""


_CLIENTS: list[Callable[[bytes, list[int]], Received]] = [
    _from_repair,
    _from_messages,
    _from_responses,
    _from_aggregator,
]


def _event(fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _with(text: str, **fields: Any) -> dict[str, Any]:
    """Return a chunk whose choice has more fields."""
    made = chunk({"content": text})
    made["choices"][0] |= fields
    return made


_CARRIERS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: _event(chunk({"content": text})),
    "utf-8": lambda text: sse_stream(chunk({"content": text}), done=False),
    "infinity": lambda text: _event(
        _with(text, logprobs={"content": [{"logprob": -float("inf")}]})
    ),
    "nan beside usage": lambda text: _event(chunk({"content": text}, timings={"ms": float("nan")})),
    "index as text": lambda text: _event(_with(text, index="0")),
    "index as a fraction": lambda text: _event(_with(text, index=0.5)),
    "index that is no number": lambda text: _event(_with(text, index={})),
    "id as a number": lambda text: _event(chunk({"content": text}, id=7.5, created="7", model=3)),
    "finish reason as false": lambda text: _event(_with(text, finish_reason=False)),
    "stop reason as a list": lambda text: _event(_with(text, stop_reason=[1])),
    "usage as text": lambda text: _event(chunk({"content": text}, usage="none yet")),
    "counts as text": lambda text: _event(chunk({"content": text}, usage={"prompt_tokens": "1"})),
    "role as a number": lambda text: _event(chunk({"content": text, "role": 1})),
    "parts": lambda text: _event(chunk({"content": [{"type": "text", "text": text}]})),
    "a part": lambda text: _event(chunk({"content": {"type": "text", "text": text}})),
    "text parts without a type": lambda text: _event(chunk({"content": [{"text": text}, None]})),
    "delta as text": lambda text: _event(_with("", delta=text)),
    "one choice without a list": lambda text: _event(
        chunk() | {"choices": {"index": 0, "delta": {"content": text}}}
    ),
    "half a surrogate elsewhere": lambda text: _event(chunk({"content": text}, note="\ud83d")),
    "a whole message": lambda text: _event(chunk() | {"choices": [{"message": {"content": text}}]}),
    "keep-alive line before": lambda text: b"data: ping\n" + _event(chunk({"content": text})),
    "refusal and calls that are null": lambda text: _event(
        chunk({"content": text, "refusal": None, "tool_calls": None, "function_call": None})
    ),
    "empty calls": lambda text: _event(chunk({"content": text, "tool_calls": []})),
    "calls with a null": lambda text: _event(chunk({"content": text, "tool_calls": [None]})),
    "long integers": lambda text: _event(chunk({"content": text}, created=10**30, id=10**400)),
    "control character": lambda text: (
        _event(chunk({"content": text}, note="\n")).replace(b"\\n", b"\t")
        if "\n" not in text
        else _event(chunk({"content": text}))
    ),
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(_CARRIERS)), st.text(max_size=6)), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_text_reaches_every_client_whatever_surrounds_it(
    pieces: list[tuple[str, str]], cuts: list[int]
) -> None:
    """Odd fields, in any order and however the stream is split, cost no text."""
    data = b"".join(_CARRIERS[name](text) for name, text in pieces)
    data += sse_stream(chunk(finish="stop"))
    expected = "".join(text for _, text in pieces)
    for client in _CLIENTS:
        assert client(data, cuts) == ("", expected), client.__name__


@pytest.mark.parametrize("name", sorted(_CARRIERS))
@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
def test_every_carrier_is_read(client: Callable[..., Received], name: str) -> None:
    """Each odd field alone, between clean chunks."""
    clean = sse_stream(chunk({"content": "a"}), done=False)
    data = clean * 3 + _CARRIERS[name]("b😀") + clean + sse_stream(chunk(finish="stop"))
    assert client(data, []) == ("", "aaab😀a")


@given(st.data())
def test_junk_costs_no_text(data: st.DataObject) -> None:
    """Junk in any field but the text itself: the client gets all text, or an error."""
    events = [sse_stream(chunk({"content": "a"}), done=False)]
    for _ in range(2):
        made = chunk({"content": "b"}, usage=usage(), x=1)
        if data.draw(st.booleans()):
            made["choices"][0]["delta"]["role"] = data.draw(with_junk("assistant"))
            made["choices"][0]["logprobs"] = data.draw(with_junk({"content": [1]}))
            made["choices"][0]["index"] = data.draw(
                st.sampled_from([None, 0, -1, 0.5, "x", "0", [], {}, False])
            )
        else:
            kept = made.pop("choices")
            junk = data.draw(with_junk(made))
            if not isinstance(junk, dict) or junk.get("error"):
                continue
            made = junk | {"choices": kept}
        events.append(_event(made))
    stream = b"".join(events) + sse_stream(chunk(finish="stop"))
    for client in _CLIENTS:
        assert client(stream, []) in {None, ("", "a" + "b" * (len(events) - 1))}, client.__name__


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([{"reasoning": "r"}, {"content": "a"}], ("r", "a")),
        ([{"reasoning_details": [{"type": "reasoning.text", "text": "r"}]}], ("r", "")),
        ([{"reasoning_details": {"type": "reasoning.summary", "summary": "r"}}], ("r", "")),
        ([{"reasoning": "r", "reasoning_details": [{"text": "r"}]}], ("r", "")),
        (
            [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}]}],
            ("r", ""),
        ),
        (
            [{"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]}],
            ("r", "a"),
        ),
        ([{"content": [{"type": "reasoning", "text": "r"}]}, {"content": 1.50}], ("r", "1.5")),
        ([{"content": [{"type": "reasoning", "content": "r"}]}], ("r", "")),
        ([{"content": [{"type": "reasoning", "summary": [{"text": "r"}]}]}], ("r", "")),
        ([{"content": [{"type": "reasoning_text", "thinking": "r"}]}], ("r", "")),
        ([{"content": True}, {"content": 7}, {"content": []}, {"content": {}}], ("", "true7")),
    ],
)
@pytest.mark.parametrize("client", _CLIENTS[1:], ids=lambda client: client.__name__)
def test_reasoning_is_carried_in_all_its_forms(
    client: Callable[..., Received], deltas: list[dict[str, Any]], expected: tuple[str, str]
) -> None:
    """Reasoning comes under three names, and as content parts (Mistral)."""
    data = sse_stream(*map(chunk, deltas), chunk(finish="stop"))
    assert client(data, []) == expected


@pytest.mark.parametrize(
    "event",
    [
        _event(chunk({"content": {"image": "..."}})),
        _event(chunk({"content": [{"type": "image_url", "image_url": {"url": "..."}}]})),
        _event(_with("", delta=["a"])),
        _event(_with("", delta=7)),
        _event(chunk() | {"choices": "a"}),
        _event(chunk() | {"choices": ["a"]}),
        _event(chunk({"content": float("nan")})),
        _event(chunk({"tool_calls": "f()"})),
        _event(chunk({"tool_calls": ["f()"]})),
        _event(chunk({"tool_calls": [{"index": 0, "function": [1]}]})),
        _event(
            chunk({"tool_calls": [{"function": {"name": "f", "arguments": {"x": float("nan")}}}]})
        ),
        b"data: {\n\n",
        b'data: {"choices":[{"delta":{"content":"b\n\n',
        b'data: "b"\n\n',
        b"data: ping\ndata: b\n\n",
        b'data: {"x":' + b"[" * 100_000 + b"\n\n",
        b'data: {"choices":[{"delta":{"content":"a"}}],"x":' + b"[" * 9999 + b"]" * 9999 + b"}\n\n",
    ],
)
@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
def test_what_can_not_be_read_is_an_error(client: Callable[..., Received], event: bytes) -> None:
    """Never a response with a gap."""
    data = sse_stream(chunk({"content": "a"}), event, chunk({"content": "c"}), chunk(finish="stop"))
    assert client(data, []) is None


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize("backslashes", ["", "\\\\", "\\\\\\\\"])
def test_surrogates_split_between_chunks_are_rejoined(
    client: Callable[..., Received], backslashes: str
) -> None:
    """Servers in JavaScript escape the halves of a character that they split."""
    template = 'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    clean = (template % "-").encode() * 3
    pieces = [
        template % f"a{backslashes}\\ud83d",
        template % "\\ude00b",
        template % "\\ud83d\\ude00",
    ]
    data = clean + "".join(pieces).encode() + sse_stream(chunk(finish="stop"))
    text = "---a" + backslashes.replace("\\\\", "\\") + "😀b😀"
    assert client(data, []) == ("", text)


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize("odd", ["", '"id":NaN,'])
@pytest.mark.parametrize("key", ["x", "prompt_tokens_details"])
def test_json_of_any_depth_is_handled(client: Callable[..., Received], odd: str, key: str) -> None:
    """Around the depth at which decoders give up, all text arrives or there is an error."""
    text = '"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]'
    for depth in [1, 50, *range(150, 1100, 95), 100_000]:
        nested = '{"usage":' + f'{{"{key}":' * depth + "1" + "}" * depth + "}"
        event = f'data: {{{odd}{text},"usage":{nested[9:-1]}}}\n\n'.encode()
        assert client(event + sse_stream(chunk(finish="stop")), []) in {None, ("", "a")}


def _whole(message: dict[str, Any], finish: Any = "stop", **fields: Any) -> bytes:
    body = {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    return json.dumps(body | fields).encode()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (_whole({"content": [{"type": "text", "text": "a"}]}), "a"),
        (_whole({"content": "a"}, usage="?"), "a"),
        (_whole({"content": "a"}, x=float("inf")), "a"),
        (_whole({"content": "a\ud83d"}), "a\ufffd"),
        (_whole({"content": 5}), "5"),
        (_whole({"content": "a"}, finish={"type": "stop_sequence"}), "a"),
    ],
)
def test_whole_responses_are_read_leniently_too(body: bytes, text: str) -> None:
    """The same odd fields in an unstreamed response, for clients of all three APIs."""
    repaired = json.loads(repair_completion(body, "r")[0])["choices"][0]
    assert (repaired["message"]["content"], repaired["finish_reason"]) == (text, "stop")
    message = json.loads(to_message(body, message_id="m", model="m"))
    assert (message["content"][0]["text"], message["stop_reason"]) == (text, "end_turn")
    response = json.loads(
        msgspec.json.encode(to_response(body, response_in_progress(), now=lambda: 9))
    )
    assert response["output"][0]["content"][0]["text"] == text
