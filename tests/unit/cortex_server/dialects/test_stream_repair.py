"""Repair of OpenAI streams and responses, and aggregation of streams."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from dialects_kit import (
    call_delta,
    chunk,
    parse_events,
    responses_stream,
    run_translator,
    sse_stream,
    usage,
    usage_chunk,
    with_junk,
)
from hypothesis import given
from hypothesis import strategies as st
from rigs.lazy_import import openai

from cortex_common.errors import (
    CortexError,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.completion_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter

_STOP = chunk(finish="stop")
_CALLS = chunk(finish="tool_calls")


def _repair(**more: Any) -> StreamRepair:
    return StreamRepair(response_id="r1", **({"client_wants_usage": False} | more))


def _repaired(data: bytes, cuts: tuple[int, ...] = (), **more: Any) -> tuple[bytes, StreamRepair]:
    repair = _repair(**more)
    return run_translator(repair.feed, repair.end, data, cuts), repair


def _chunks(data: bytes) -> list[dict[str, Any]]:
    """Return the JSON of all events except [DONE]."""
    return [json.loads(event.data) for event in parse_events(data) if event.data != b"[DONE]"]


def _accumulate_calls(data: bytes) -> list[tuple[str, str, str]]:
    """Return (id, name, arguments) of the calls, accumulated as SDKs do: by index, concatenating all strings."""
    calls: dict[int, list[str]] = {}
    for found in _chunks(data):
        for choice in found.get("choices", []):
            for piece in choice.get("delta", {}).get("tool_calls") or []:
                slot = calls.setdefault(piece["index"], ["", "", ""])
                function = piece.get("function") or {}
                for place, text in enumerate(
                    (piece.get("id"), function.get("name"), function.get("arguments"))
                ):
                    slot[place] += text or ""
    return [(a, b, c) for _, (a, b, c) in sorted(calls.items())]


_TWO_CALLS = [
    call_delta(0, "", call_id="a", name="f"),
    call_delta(0, '{"x"'),
    call_delta(0, ":1}"),
    call_delta(1, '{"y":2}', call_id="b", name="g"),
]
_CLEAN = {
    "text": sse_stream(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hé 😀"}),
        chunk({"content": "b"}),
        _STOP,
    ),
    "with usage": sse_stream(chunk({"content": "a"}, usage=None), _STOP, usage_chunk()),
    "spaces after colons": sse_stream(
        b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}], "usage": null}\n\n',
        _STOP,
    ),
    "calls": sse_stream(*(chunk(delta) for delta in _TWO_CALLS), _CALLS),
    "comments and other events": sse_stream(
        b": ping\n\n",
        chunk({"content": "a"}),
        b"event: file_produced\ndata: {}\n\n: ping\n\n",
        _STOP,
    ),
    "text completion": sse_stream(
        {
            "object": "text_completion",
            "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}],
        }
    ),
    "empty tool_calls": sse_stream(chunk({"content": "a", "tool_calls": None}), _STOP),
}


@given(
    st.sampled_from(sorted(_CLEAN)), st.lists(st.integers(0, 10_000), max_size=30), st.booleans()
)
def test_clean_stream_is_unchanged(name: str, cuts: list[int], returns: bool) -> None:
    """A clean stream is unchanged, however it is split and whatever its line endings, and no repair is counted."""
    data = _CLEAN[name].replace(b"\n", b"\r\n") if returns else _CLEAN[name]
    out, repair = _repaired(data, tuple(cuts), client_wants_usage="usage" in name)
    assert out == data
    assert not repair.repairs
    assert repair.complete
    assert repair.error is None


def test_complete_events_are_not_held_back() -> None:
    """Complete events are returned immediately; only an incomplete one is kept."""
    repair = _repair()
    data = sse_stream(chunk({"content": "a"}), done=False)
    assert repair.feed(data + b"data: {") == data
    assert repair.feed(b'"choices":[]}\n\n') == b'data: {"choices":[]}\n\n'
    assert repair.events == 2


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        (
            [
                call_delta(0, '{"x":1}', call_id="a", name="f"),
                call_delta(0, '{"y":2}', call_id="b", name="g"),
            ],
            "tool_call_index",
        ),
        (
            [
                call_delta(None, '{"x":1}', call_id="a", name="f"),
                call_delta(None, '{"y":2}', call_id="b", name="g"),
            ],
            "tool_call_index",
        ),
        (
            [
                call_delta(0, {"x": 1}, call_id="a", name="f"),
                call_delta(1, {"y": 2}, call_id="b", name="g"),
            ],
            "tool_arguments_object",
        ),
        (
            [
                call_delta(0, '{"x"', call_id="a", name="f"),
                call_delta(0, ":1}", call_id="a", name="f"),
                call_delta(1, '{"y":2}', call_id="b", name="g"),
            ],
            "tool_call_repeated",
        ),
    ],
)
def test_tool_calls_are_repaired(pieces: list[dict[str, Any]], kind: str) -> None:
    """Indices, arguments and repeated names are repaired, so that an SDK accumulates the calls correctly."""
    out, repair = _repaired(sse_stream(*(chunk(piece) for piece in pieces), _CALLS))
    calls = [
        (call_id, name, json.loads(arguments))
        for call_id, name, arguments in _accumulate_calls(out)
    ]
    assert calls == [("a", "f", {"x": 1}), ("b", "g", {"y": 2})]
    assert set(repair.repairs) == {kind}


@pytest.mark.parametrize("index", [0, None])
def test_long_calls_with_the_same_index_are_separated(index: int | None) -> None:
    """A template learned from the fragments of one call is not used for the next."""
    texts = [json.dumps({"code": f'print("{n}")\n' * 3}) for n in range(3)]
    deltas = [
        piece
        for n, text in enumerate(texts)
        for piece in (
            call_delta(index, "", call_id=f"id{n}", name="f"),
            *(call_delta(index, text[at : at + 2]) for at in range(0, len(text), 2)),
        )
    ]
    data = sse_stream(*(chunk(delta) for delta in deltas), _CALLS)
    repair = _repair()
    pieces = [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
    out = b"".join(repair.feed(piece) for piece in pieces)
    assert _accumulate_calls(out) == [(f"id{n}", "f", text) for n, text in enumerate(texts)]
    assert _repaired(data)[0] == out


@given(st.lists(st.text(max_size=6), max_size=12), st.booleans(), st.sampled_from([None, "alias"]))
def test_any_text_passes_unchanged(texts: list[str], in_calls: bool, alias: str | None) -> None:
    """Quotes, backslashes and line feeds in the text of similar chunks are handled."""
    head = [chunk(call_delta(0, '{"x":"', call_id="a", name="f"))] if in_calls else []
    body = [chunk(call_delta(0, text) if in_calls else {"content": text}) for text in texts]
    repair = _repair(rename_model=ModelNameRewriter(alias))
    events_in = [*head, *body, chunk(finish="tool_calls" if in_calls else "stop")]
    out = b"".join(repair.feed(sse_stream(event, done=False)) for event in events_in)
    assert _chunks(out) == [event | {"model": alias or "engine"} for event in events_in]
    assert not repair.repairs
    assert repair.events == len(events_in)


@given(st.lists(st.binary(max_size=8), max_size=8), st.booleans())
def test_any_bytes_in_place_of_text_are_handled(middles: list[bytes], in_calls: bool) -> None:
    """Arbitrary bytes in place of the text raise nothing, and the stream ends."""
    example = chunk(call_delta(0, "@@") if in_calls else {"content": "@@"})
    repair = _repair()
    repair.feed(sse_stream(chunk(call_delta(0, "", call_id="a", name="f")), done=False))
    repair.feed(sse_stream(example, done=False))
    for middle in middles:
        repair.feed(sse_stream(example, done=False).replace(b"@@", middle))
    repair.feed(sse_stream(_STOP))
    repair.end()
    assert repair.ended


@given(st.data())
def test_junk_in_a_chunk_is_handled(data: st.DataObject) -> None:
    """A field of a wrong type never raises: the stream continues, or ends with an error."""
    stream = []
    for _ in range(3):
        delta = {"content": "a", "reasoning": "r"} | call_delta(0, "{}", call_id="a", name="f")
        complete = chunk(delta, finish="stop", usage=usage())
        stream.append(data.draw(with_junk(complete)))
    sent = sse_stream(*stream)
    _repaired(sent, client_wants_usage=data.draw(st.booleans()))
    for other in (
        MessagesStreamWriter(message_id="m", model="m"),
        responses_stream(),
    ):
        run_translator(other.feed, other.end, sent)
        assert other.complete or other.error is not None
    aggregator = StreamAggregator(response_id="r1")
    aggregator.feed(sent)
    with contextlib.suppress(CortexError):
        aggregator.end()


def test_calls_in_one_chunk_are_repaired() -> None:
    """Two calls that share a chunk and the index 0 get an index each."""
    both = {
        "tool_calls": [
            call_delta(0, "{}", call_id="a", name="f")["tool_calls"][0],
            call_delta(0, "{}", name="g")["tool_calls"][0],
        ]
    }
    out, repair = _repaired(sse_stream(chunk(both), _CALLS))
    first, second = _accumulate_calls(out)
    assert first == ("a", "f", "{}")
    assert second[1:] == ("g", "{}")
    assert second[0] not in {"", "a"}
    assert repair.repairs["tool_call_id"] == 1


def test_stop_after_tool_calls_becomes_tool_calls() -> None:
    """The finish reason is corrected, and other fields of the chunk are kept."""
    out, repair = _repaired(
        sse_stream(
            chunk(call_delta(0, "{}", call_id="a", name="f")),
            chunk(finish="stop", timings={"cache_n": 3}),
        )
    )
    last = _chunks(out)[-1]
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert last["timings"] == {"cache_n": 3}
    assert repair.repairs == {"finish_reason_tool_calls": 1}
    assert repair.finish_reasons == ("tool_calls",)


def test_unrequested_usage_is_removed() -> None:
    """A client that did not request usage gets neither a usage chunk nor a usage field."""
    data = sse_stream(
        chunk({"content": "a"}, usage=usage(1, 1)),
        chunk(finish="stop", usage=usage()),
        usage_chunk(),
    )
    out, repair = _repaired(data)
    assert all("usage" not in found for found in _chunks(out))
    assert len(_chunks(out)) == 2
    assert repair.repairs == {"usage_unrequested": 3}
    assert repair.usage is not None
    assert (repair.usage.prompt, repair.usage.completion) == (11, 5)


def test_removing_usage_that_the_gateway_requested_is_not_a_repair() -> None:
    """Usage that the gateway requested is removed without counting a repair."""
    out, repair = _repaired(
        sse_stream(chunk({"content": "a"}), _STOP, usage_chunk()), gateway_requested_usage=True
    )
    assert out == sse_stream(chunk({"content": "a"}), _STOP)
    assert not repair.repairs


def test_usage_in_the_finish_chunk_is_sent_as_a_usage_chunk() -> None:
    """A client that requested usage gets the chunk that OpenAI defines for it."""
    out, repair = _repaired(
        sse_stream(chunk({"content": "a"}), chunk(finish="stop", usage=usage(3, 2))),
        client_wants_usage=True,
    )
    last = _chunks(out)[-1]
    assert last["choices"] == []
    assert last["usage"] == usage(3, 2)
    assert (last["id"], last["model"]) == ("chatcmpl-1", "engine")
    assert out.endswith(b"data: [DONE]\n\n")
    assert repair.repairs == {"usage_chunk_missing": 1}


def test_missing_usage_is_estimated() -> None:
    """The prompt is estimated, and each chunk counts as a completion token."""
    data = sse_stream(chunk({"content": "a"}), chunk({"content": "b"}), _STOP)
    out, repair = _repaired(data, client_wants_usage=True, prompt_tokens=lambda: 40)
    assert _chunks(out)[-1]["usage"] == usage(40, 3)
    assert repair.repairs == {"usage_missing": 1}


@pytest.mark.parametrize(
    "head", [sse_stream(chunk({"content": "a"}), done=False), b"", b'data: {"choices":[{"delta"']
)
def test_end_without_finish_reason_is_an_error(head: bytes) -> None:
    """A stream that just ends gets an error event and no [DONE]."""
    out, repair = _repaired(head)
    error = _chunks(out)[-1]["error"]
    assert (error["code"], error["src"]) == ("upstream_failed", "cortex")
    assert b"[DONE]" not in out
    assert isinstance(repair.error, UpstreamFailed)
    assert not repair.complete


def test_missing_done_is_added_after_a_finish_reason() -> None:
    """A finish reason proves that the response is complete."""
    data = sse_stream(chunk({"content": "a"}), _STOP, done=False)
    out, repair = _repaired(data)
    assert out == data + b"data: [DONE]\n\n"
    assert repair.repairs == {"done_missing": 1}


def test_last_event_without_a_blank_line_is_handled() -> None:
    """Some servers end with [DONE] and no blank line."""
    out, repair = _repaired(sse_stream(chunk({"content": "a"}), _STOP)[:-2])
    assert parse_events(out)[-1].data == b"[DONE]"
    assert repair.complete


@pytest.mark.parametrize("chunks", [[], [chunk({"content": "a"})], [usage_chunk()]])
def test_done_without_a_finish_reason_is_an_error(chunks: list[dict[str, Any]]) -> None:
    """An engine that was interrupted sends [DONE] too; only a finish reason proves that the response is complete."""
    out, repair = _repaired(sse_stream(*chunks))
    assert "error" in _chunks(out)[-1]
    assert b"[DONE]" not in out
    assert isinstance(repair.error, UpstreamFailed)
    with pytest.raises(UpstreamFailed):
        _aggregate(sse_stream(*chunks))


@pytest.mark.parametrize(
    ("event", "kind", "repaired"),
    [
        (
            b'data: {"error":{"code":503,"message":"boom","type":"unavailable_error"}}\n\n',
            Unavailable,
            True,
        ),
        (
            b'data: {"error":{"message":"boom","type":"server_error","param":null,"code":null}}\n\n',
            UpstreamFailed,
            False,
        ),
        (b'data: {"error":"boom"}\n\n', UpstreamFailed, True),
        (b'event: error\ndata: {"message":"boom"}\n\n', UpstreamFailed, True),
        (b'error: {"code":500,"message":"boom","type":"server_error"}\n\n', UpstreamFailed, True),
        (b'data: {"error":{"message":"boom: prompt is too long"}}\n\n', PromptTooLong, True),
    ],
)
def test_error_in_a_stream_is_sent_in_openai_format(
    event: bytes, kind: type[CortexError], repaired: bool
) -> None:
    """Whatever the engine's format, the client gets an error object as data, and nothing after it."""
    before = sse_stream(chunk({"content": "a"}), done=False)
    out, repair = _repaired(before + event + sse_stream(_STOP))
    assert out.startswith(before)
    assert "boom" in _chunks(out)[-1]["error"]["message"]
    assert parse_events(out)[-1].name == ""
    assert isinstance(repair.error, kind)
    assert bool(repair.repairs["error_format"]) is repaired
    assert repaired or out == before + event


def test_fail_ends_the_stream_with_an_error() -> None:
    """After `fail`, further bytes are ignored."""
    repair = _repair()
    repair.feed(sse_stream(chunk({"content": "a"}), done=False))
    assert (
        _chunks(repair.fail(UpstreamTimeout("silence")))[0]["error"]["code"] == "upstream_timeout"
    )
    assert repair.feed(sse_stream(_STOP)) == repair.end() == repair.ping() == b""


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_split_characters_are_rejoined(cut_at: int) -> None:
    """A character split between two events is sent whole in the second."""
    smile = "😀".encode()
    parts = [smile[:cut_at], smile[cut_at:]]
    template = b'data: {"choices":[{"index":0,"delta":{"content":"x%b"},"finish_reason":null}]}\n\n'
    second = b'data: {"choices":[{"index":0,"delta":{"content":"%by"},"finish_reason":null}]}\n\n'
    data = template % parts[0] + second % parts[1] + sse_stream(_STOP)
    out, repair = _repaired(data)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in _chunks(out)) == "x😀y"
    assert repair.repairs["split_character"] == 2


@pytest.mark.parametrize("data", [b"{oops", b'{"choices":[{"delta":{"content":"b', b"boom", b"7"])
def test_events_that_are_not_chunks_are_errors(data: bytes) -> None:
    """An event that is not JSON can stand for text, so the stream fails instead of leaving a gap."""
    before = sse_stream(chunk({"content": "a"}), done=False)
    out, repair = _repaired(before + b"data: " + data + b"\n\n" + sse_stream(_STOP))
    assert out.startswith(before)
    assert "error" in _chunks(out)[-1]
    assert isinstance(repair.error, UpstreamFailed)
    assert repair.error.message == "boom" or data != b"boom"


@pytest.mark.parametrize("data", [b"", b"ping", b"[PING]", b"null", b"{}"])
def test_keep_alive_data_becomes_a_comment(data: bytes) -> None:
    """Data that only keeps a connection alive is no chunk; clients would fail to parse it."""
    out, repair = _repaired(sse_stream(chunk({"content": "a"}), b"data: " + data + b"\n\n", _STOP))
    assert out == sse_stream(chunk({"content": "a"}), b": keep-alive\n\n", _STOP)
    assert repair.repairs == {"keep_alive": 1}


@pytest.mark.parametrize("junk", [b"data: ping\n", b"data:\n"])
def test_chunks_after_a_keep_alive_line_are_kept(junk: bytes) -> None:
    """A line between two chunks without blank lines around it does not cost the chunk."""
    text = sse_stream(chunk({"content": "b"}), done=False)
    out, repair = _repaired(
        sse_stream(chunk({"content": "a"}), junk + text, text[:-1], text, _STOP)
    )
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in _chunks(out)) == "abbb"
    assert repair.complete


def test_model_name_is_replaced_with_the_clients() -> None:
    """Every chunk, including those of the gateway, has the name that the client sent."""
    data = sse_stream(
        chunk({"content": 'say "model":"engine"'}), chunk(finish="stop", usage=usage())
    )
    out, _ = _repaired(data, client_wants_usage=True, rename_model=ModelNameRewriter("my/alias"))
    assert {found["model"] for found in _chunks(out)} == {"my/alias"}
    assert _chunks(out)[0]["choices"][0]["delta"]["content"] == 'say "model":"engine"'


_DELTAS = st.one_of(
    st.builds(lambda t: {"content": t}, st.text(max_size=5)),
    st.builds(
        call_delta,
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, "", "{}", '{"a"', ":1}", {"a": 1}]),
        call_id=st.sampled_from([None, "a", "b"]),
        name=st.sampled_from([None, "f"]),
    ),
)


@given(
    st.lists(_DELTAS, max_size=10),
    st.sampled_from(["stop", "length", None]),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_output_is_well_formed_however_the_stream_is_split(
    deltas: list[dict[str, Any]], finish: str | None, wanted: bool, done: bool, cuts: list[int]
) -> None:
    """The output has one end, numbers calls from 0, and does not depend on how the input is split."""
    data = sse_stream(*(chunk(delta) for delta in deltas), chunk(finish=finish), done=done)
    out, repair = _repaired(data, client_wants_usage=wanted)
    assert _repaired(data, tuple(cuts), client_wants_usage=wanted)[0] == out
    assert repair.complete == (parse_events(out)[-1].data == b"[DONE]") == (finish is not None)
    indices = [
        piece["index"]
        for found in _chunks(out)
        for choice in found.get("choices", [])
        for piece in choice["delta"].get("tool_calls") or []
    ]
    assert set(indices) == set(range(len(set(indices))))
    assert sum("usage" in found for found in _chunks(out)) == (wanted and repair.complete)


def _aggregate(data: bytes, **more: Any) -> dict[str, Any]:
    aggregator = StreamAggregator(response_id="r1", **more)
    for piece in (data[:10], data[10:]):
        aggregator.feed(piece)
    found: dict[str, Any] = json.loads(aggregator.end())
    return found


def test_stream_is_aggregated() -> None:
    """Text, reasoning, calls, logprobs, the finish reason, usage and the engine's own fields are kept."""
    first = chunk(
        {"role": "assistant", "reasoning_content": "h", "content": None}, system_fingerprint="fp"
    )
    logged = chunk({"content": "a"})
    logged["choices"][0]["logprobs"] = {
        "content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    }
    data = sse_stream(
        first,
        logged,
        logged,
        chunk(call_delta(0, '{"x"', call_id="a", name="f")),
        chunk(call_delta(0, ":1}")),
        chunk(call_delta(0, {"y": 2}, call_id="b", name="g")),
        chunk(finish="stop", usage=usage(), timings={"cache_n": 1}),
    )
    found = _aggregate(data, model="alias")
    openai.types.chat.ChatCompletion.model_validate(found)
    assert found == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "alias",
        "system_fingerprint": "fp",
        "timings": {"cache_n": 1},
        "usage": usage(),
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "logprobs": {
                    "content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
                    * 2
                },
                "message": {
                    "role": "assistant",
                    "content": "aa",
                    "refusal": None,
                    "reasoning_content": "h",
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"x":1}'},
                        },
                        {
                            "id": "b",
                            "type": "function",
                            "function": {"name": "g", "arguments": '{"y":2}'},
                        },
                    ],
                },
            }
        ],
    }


def test_choices_are_aggregated_separately() -> None:
    """Chunks of different choices can be interleaved."""
    other = [chunk({"content": text}) for text in "xy"]
    for found in other:
        found["choices"][0]["index"] = 1
    ends = chunk(finish="stop"), chunk(finish="length")
    ends[1]["choices"][0]["index"] = 1
    found = _aggregate(
        sse_stream(other[0], chunk({"content": "a"}), other[1], chunk({"content": "b"}), *ends)
    )
    assert [c["message"]["content"] for c in found["choices"]] == ["ab", "xy"]
    assert [c["finish_reason"] for c in found["choices"]] == ["stop", "length"]
    assert found["model"] == "engine"


def test_text_completions_are_aggregated() -> None:
    """Choices of text completions have text, and logprobs of four lists."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m"}
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None, "text_offset": [0]}
    pieces = [
        head | {"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]} for _ in range(2)
    ]
    found = _aggregate(
        sse_stream(
            *pieces, head | {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        )
    )
    assert found["object"] == "text_completion"
    assert found["choices"][0]["text"] == "aa"
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["choices"][0]["logprobs"]["tokens"] == ["a", "a"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", UpstreamFailed),
        (sse_stream(chunk({"content": "a"}), done=False), UpstreamFailed),
        (b"data: [DONE]\n\n", UpstreamFailed),
        (sse_stream(chunk({"content": "a"}), b"data: {oops}\n\n", _STOP), UpstreamFailed),
        (b'data: {"error":{"message":"Loading","code":503}}\n\ndata: [DONE]\n\n', Unavailable),
        (b'data: {"error":{"message":"prompt is too long","code":null}}\n\n', PromptTooLong),
    ],
)
def test_incomplete_stream_is_not_aggregated(data: bytes, kind: type[CortexError]) -> None:
    """An error of the engine, an early end and a malformed chunk are errors, never a shorter response."""
    with pytest.raises(kind):
        _aggregate(data)


def _completion(calls: list[dict[str, Any]], finish: str) -> bytes:
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return json.dumps({"x": 1, "choices": [{"message": message, "finish_reason": finish}]}).encode()


def test_unstreamed_response_is_repaired() -> None:
    """Object arguments become text, missing ids are generated, and "stop" after calls becomes "tool_calls"."""
    out, repairs = repair_completion(
        _completion([{"function": {"name": "f", "arguments": {"x": 1}}}], "stop"), "r1"
    )
    choice = json.loads(out)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"x":1}'
    assert choice["message"]["tool_calls"][0]["id"]
    assert repairs == {"tool_arguments_object": 1, "tool_call_id": 1, "finish_reason_tool_calls": 1}
    assert json.loads(out)["x"] == 1


@pytest.mark.parametrize(
    "body",
    [
        _completion([{"id": "a", "function": {"name": "f", "arguments": "{}"}}], "tool_calls"),
        b'{"choices": [{"message": {"content": "a"}}]}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": "an unknown word"}], "tool_calls": 7}',
    ],
)
def test_clean_response_is_unchanged(body: bytes) -> None:
    """A response that needs no repair is returned unchanged, to the byte."""
    assert repair_completion(body, "r1") == (body, {})


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"no json", UpstreamFailed),
        (b'{"choices": [{"message": {"content": "hal', UpstreamFailed),
        (b'{"choices": [3]}', UpstreamFailed),
        (b'{"choices": []}', UpstreamFailed),
        (b'{"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}', UpstreamFailed),
        (b'{"error": {"message": "prompt is too long"}}', PromptTooLong),
    ],
)
def test_a_body_that_is_no_complete_response_is_an_error(
    body: bytes, kind: type[CortexError]
) -> None:
    """Half a response, an error with status 200 and a failed response don't pass as good ones."""
    with pytest.raises(kind):
        repair_completion(body, "r1")
