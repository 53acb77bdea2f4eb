"""OpenAI streams repaired on their way through, and put together to whole answers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from dialects_kit import call, chunk, events, run, spoiled, usage, usage_chunk, wire
from hypothesis import given
from hypothesis import strategies as st
from rigs.late import openai

from cortex_common.errors import (
    CortexError,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_server.dialects.anthropic.stream import MessagesStream
from cortex_server.dialects.responses.stream import ResponsesStream
from cortex_server.dialects.stream.aggregate import Assembler
from cortex_server.dialects.stream.chunk_repair import mend_answer
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import Echo

_STOP = chunk(finish="stop")
_CALLS = chunk(finish="tool_calls")


def _repair(**more: Any) -> StreamRepair:
    return StreamRepair(answer_id="r1", **({"usage_wanted": False} | more))


def _through(data: bytes, places: tuple[int, ...] = (), **more: Any) -> tuple[bytes, StreamRepair]:
    repair = _repair(**more)
    return run(repair.feed, repair.end, data, places), repair


def _chunks(data: bytes) -> list[dict[str, Any]]:
    """The JSON of all events but [DONE]."""
    return [json.loads(event.data) for event in events(data) if event.data != b"[DONE]"]


def _accumulated(data: bytes) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of the calls, put together as SDKs do: by index, all texts joined."""
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
    call(0, "", ident="a", name="f"),
    call(0, '{"x"'),
    call(0, ":1}"),
    call(1, '{"y":2}', ident="b", name="g"),
]
_CLEAN = {
    "text": wire(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hé 😀"}),
        chunk({"content": "b"}),
        _STOP,
    ),
    "with usage": wire(chunk({"content": "a"}, usage=None), _STOP, usage_chunk()),
    "spaces after colons": wire(
        b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}], "usage": null}\n\n',
        _STOP,
    ),
    "calls": wire(*(chunk(delta) for delta in _TWO_CALLS), _CALLS),
    "comments and foreign events": wire(
        b": ping\n\n",
        chunk({"content": "a"}),
        b"event: file_produced\ndata: {}\n\n: ping\n\n",
        _STOP,
    ),
    "text completion": wire(
        {
            "object": "text_completion",
            "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}],
        }
    ),
    "empty tool_calls": wire(chunk({"content": "a", "tool_calls": None}), _STOP),
}


@given(
    st.sampled_from(sorted(_CLEAN)), st.lists(st.integers(0, 10_000), max_size=30), st.booleans()
)
def test_a_clean_stream_passes_byte_for_byte(name: str, places: list[int], returns: bool) -> None:
    """However it is cut and whichever line ends it has, nothing is changed and no repair is counted."""
    data = _CLEAN[name].replace(b"\n", b"\r\n") if returns else _CLEAN[name]
    out, repair = _through(data, tuple(places), usage_wanted="usage" in name)
    assert out == data
    assert not repair.repairs
    assert repair.complete
    assert repair.error is None


def test_whole_events_are_not_held_back() -> None:
    """What is whole leaves at once; only an unfinished event waits for its end."""
    repair = _repair()
    data = wire(chunk({"content": "a"}), done=False)
    assert repair.feed(data + b"data: {") == data
    assert repair.feed(b'"choices":[]}\n\n') == b'data: {"choices":[]}\n\n'
    assert repair.events == 2


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        (
            [call(0, '{"x":1}', ident="a", name="f"), call(0, '{"y":2}', ident="b", name="g")],
            "call_index",
        ),
        (
            [
                call(None, '{"x":1}', ident="a", name="f"),
                call(None, '{"y":2}', ident="b", name="g"),
            ],
            "call_index",
        ),
        (
            [call(0, {"x": 1}, ident="a", name="f"), call(1, {"y": 2}, ident="b", name="g")],
            "arguments_object",
        ),
        (
            [
                call(0, '{"x"', ident="a", name="f"),
                call(0, ":1}", ident="a", name="f"),
                call(1, '{"y":2}', ident="b", name="g"),
            ],
            "call_repeated",
        ),
    ],
)
def test_calls_are_mended(pieces: list[dict[str, Any]], kind: str) -> None:
    """Indices, arguments and repeated names are mended so that an SDK puts the calls together right."""
    out, repair = _through(wire(*(chunk(piece) for piece in pieces), _CALLS))
    calls = [(ident, name, json.loads(arguments)) for ident, name, arguments in _accumulated(out)]
    assert calls == [("a", "f", {"x": 1}), ("b", "g", {"y": 2})]
    assert set(repair.repairs) == {kind}


@pytest.mark.parametrize("index", [0, None])
def test_long_calls_at_the_same_index_are_told_apart(index: int | None) -> None:
    """What was learned from the pieces of one call does not hold for those of the next."""
    texts = [json.dumps({"code": f'print("{n}")\n' * 3}) for n in range(3)]
    deltas = [
        piece
        for n, text in enumerate(texts)
        for piece in (
            call(index, "", ident=f"id{n}", name="f"),
            *(call(index, text[at : at + 2]) for at in range(0, len(text), 2)),
        )
    ]
    data = wire(*(chunk(delta) for delta in deltas), _CALLS)
    repair = _repair()
    pieces = [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
    out = b"".join(repair.feed(piece) for piece in pieces)
    assert _accumulated(out) == [(f"id{n}", "f", text) for n, text in enumerate(texts)]
    assert _through(data)[0] == out


@given(st.lists(st.text(max_size=6), max_size=12), st.booleans(), st.sampled_from([None, "alias"]))
def test_texts_of_any_kind_pass_event_by_event(
    texts: list[str], in_calls: bool, alias: str | None
) -> None:
    """Quotes, backslashes and line feeds in the text of like chunks neither stop nor change them."""
    head = [chunk(call(0, "", ident="a", name="f"))] if in_calls else []
    body = [chunk(call(0, text) if in_calls else {"content": text}) for text in texts]
    repair = _repair(echo=Echo(alias))
    events_in = [*head, *body, chunk(finish="tool_calls" if in_calls else "stop")]
    out = b"".join(repair.feed(wire(event, done=False)) for event in events_in)
    assert _chunks(out) == [event | {"model": alias or "engine"} for event in events_in]
    assert not repair.repairs
    assert repair.events == len(events_in)


@given(st.lists(st.binary(max_size=8), max_size=8), st.booleans())
def test_no_bytes_break_the_relay(middles: list[bytes], in_calls: bool) -> None:
    """Whatever stands where the text should be, nothing is raised and the end is told."""
    example = chunk(call(0, "@@") if in_calls else {"content": "@@"})
    repair = _repair()
    repair.feed(wire(chunk(call(0, "", ident="a", name="f")), done=False))
    repair.feed(wire(example, done=False))
    for middle in middles:
        repair.feed(wire(example, done=False).replace(b"@@", middle))
    repair.feed(wire(_STOP))
    repair.end()
    assert repair.over


@given(st.data())
def test_no_junk_in_a_chunk_is_raised(data: st.DataObject) -> None:
    """A field of any wrong type is no reason to break: the stream goes on, or ends with an error."""
    stream = []
    for _ in range(3):
        delta = {"content": "a", "reasoning": "r"} | call(0, "{}", ident="a", name="f")
        whole = chunk(delta, finish="stop", usage=usage())
        stream.append(data.draw(spoiled(whole)))
    sent = wire(*stream)
    _through(sent, usage_wanted=data.draw(st.booleans()))
    for other in (
        MessagesStream(message_id="m", model="m"),
        ResponsesStream(response_id="r", model="m", created=0),
    ):
        run(other.feed, other.end, sent)
        assert other.complete or other.error is not None
    assembler = Assembler(answer_id="r1")
    assembler.feed(sent)
    with contextlib.suppress(CortexError):
        assembler.end()


def test_calls_in_one_chunk_are_mended() -> None:
    """Two calls that share one chunk and the index 0 get indices of their own."""
    both = {
        "tool_calls": [
            call(0, "{}", ident="a", name="f")["tool_calls"][0],
            call(0, "{}", name="g")["tool_calls"][0],
        ]
    }
    out, repair = _through(wire(chunk(both), _CALLS))
    first, second = _accumulated(out)
    assert first == ("a", "f", "{}")
    assert second[1:] == ("g", "{}")
    assert second[0] not in {"", "a"}
    assert repair.repairs["call_id"] == 1


def test_stop_after_calls_becomes_tool_calls() -> None:
    """The finish reason says that there are calls; what else the chunk holds stays."""
    out, repair = _through(
        wire(
            chunk(call(0, "{}", ident="a", name="f")), chunk(finish="stop", timings={"cache_n": 3})
        )
    )
    last = _chunks(out)[-1]
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert last["timings"] == {"cache_n": 3}
    assert repair.repairs == {"finish_after_calls": 1}
    assert repair.finish_reasons == ("tool_calls",)


def test_usage_that_was_not_asked_for_is_taken_out() -> None:
    """Neither an extra chunk nor a field of usage reaches a client that did not ask."""
    data = wire(
        chunk({"content": "a"}, usage=usage(1, 1)),
        chunk(finish="stop", usage=usage()),
        usage_chunk(),
    )
    out, repair = _through(data)
    assert all("usage" not in found for found in _chunks(out))
    assert len(_chunks(out)) == 2
    assert repair.repairs == {"usage_unasked": 3}
    assert repair.usage is not None
    assert (repair.usage.prompt, repair.usage.completion) == (11, 5)


def test_usage_that_the_gateway_asked_for_is_no_fault() -> None:
    """It is taken out without being counted as a repair."""
    out, repair = _through(wire(chunk({"content": "a"}), _STOP, usage_chunk()), usage_asked=True)
    assert out == wire(chunk({"content": "a"}), _STOP)
    assert not repair.repairs


def test_usage_of_the_finish_chunk_is_told_in_a_chunk_of_its_own() -> None:
    """A client that asked finds it where OpenAI puts it."""
    out, repair = _through(
        wire(chunk({"content": "a"}), chunk(finish="stop", usage=usage(3, 2))), usage_wanted=True
    )
    last = _chunks(out)[-1]
    assert last["choices"] == []
    assert last["usage"] == usage(3, 2)
    assert (last["id"], last["model"]) == ("chatcmpl-1", "engine")
    assert out.endswith(b"data: [DONE]\n\n")
    assert repair.repairs == {"usage_chunk": 1}


def test_usage_that_never_comes_is_estimated() -> None:
    """The prompt as estimated, the answer a token for each chunk."""
    data = wire(chunk({"content": "a"}), chunk({"content": "b"}), _STOP)
    out, repair = _through(data, usage_wanted=True, prompt_tokens=lambda: 40)
    assert _chunks(out)[-1]["usage"] == usage(40, 3)
    assert repair.repairs == {"usage_missing": 1}


@pytest.mark.parametrize(
    "head", [wire(chunk({"content": "a"}), done=False), b"", b'data: {"choices":[{"delta"']
)
def test_an_end_without_finish_is_an_explicit_error(head: bytes) -> None:
    """A stream that just ends gets an error event and no [DONE]."""
    out, repair = _through(head)
    error = _chunks(out)[-1]["error"]
    assert (error["code"], error["src"]) == ("upstream_failed", "cortex")
    assert b"[DONE]" not in out
    assert isinstance(repair.error, UpstreamFailed)
    assert not repair.complete


def test_a_missing_done_is_added_after_a_finish() -> None:
    """The finish reason says that the answer is whole."""
    data = wire(chunk({"content": "a"}), _STOP, done=False)
    out, repair = _through(data)
    assert out == data + b"data: [DONE]\n\n"
    assert repair.repairs == {"done_missing": 1}


def test_a_last_event_without_its_blank_line_counts() -> None:
    """Some servers end with [DONE] and no blank line."""
    out, repair = _through(wire(chunk({"content": "a"}), _STOP)[:-2])
    assert events(out)[-1].data == b"[DONE]"
    assert repair.complete


def test_a_missing_finish_before_done_is_added() -> None:
    """[DONE] says that the answer is whole; clients want to know why it ended."""
    out, repair = _through(wire(chunk(call(0, "{}", ident="a", name="f"))))
    assert _chunks(out)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert repair.repairs == {"finish_missing": 1}
    assert "error" in _chunks(_through(b"data: [DONE]\n\n")[0])[-1]


@pytest.mark.parametrize(
    ("event", "kind", "repaired"),
    [
        (
            b'data: {"error":{"code":503,"message":"boom","type":"unavailable_error"}}\n\n',
            Unavailable,
            False,
        ),
        (
            b'data: {"error":{"message":"boom","type":"server_error","param":null,"code":null}}\n\n',
            UpstreamFailed,
            False,
        ),
        (b'data: {"error":"boom"}\n\n', UpstreamFailed, True),
        (b'event: error\ndata: {"message":"boom"}\n\n', UpstreamFailed, True),
        (b'error: {"code":500,"message":"boom","type":"server_error"}\n\n', UpstreamFailed, True),
        (b'data: {"error":{"message":"boom: prompt is too long"}}\n\n', PromptTooLong, False),
    ],
)
def test_an_error_in_mid_stream_is_told_in_one_shape(
    event: bytes, kind: type[CortexError], repaired: bool
) -> None:
    """Whatever the engine's shape, the client gets data with an error object, and nothing after it."""
    before = wire(chunk({"content": "a"}), done=False)
    out, repair = _through(before + event + wire(_STOP))
    assert out.startswith(before)
    assert "boom" in _chunks(out)[-1]["error"]["message"]
    assert events(out)[-1].name == ""
    assert isinstance(repair.error, kind)
    assert bool(repair.repairs["error_shape"]) is repaired
    assert repaired or out == before + event


def test_a_broken_connection_is_an_explicit_error() -> None:
    """`fail` ends the stream with an error; nothing that comes later is told."""
    repair = _repair()
    repair.feed(wire(chunk({"content": "a"}), done=False))
    assert (
        _chunks(repair.fail(UpstreamTimeout("silence")))[0]["error"]["code"] == "upstream_timeout"
    )
    assert repair.feed(wire(_STOP)) == repair.end() == repair.ping() == b""


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_half_characters_are_put_together(cut_at: int) -> None:
    """A character that the engine cut between two events comes whole in the second."""
    smile = "😀".encode()
    parts = [smile[:cut_at], smile[cut_at:]]
    template = b'data: {"choices":[{"index":0,"delta":{"content":"x%b"},"finish_reason":null}]}\n\n'
    second = b'data: {"choices":[{"index":0,"delta":{"content":"%by"},"finish_reason":null}]}\n\n'
    data = template % parts[0] + second % parts[1] + wire(_STOP)
    out, repair = _through(data)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in _chunks(out)) == "x😀y"
    assert repair.repairs["half_character"] == 2


def test_malformed_events_are_left_out() -> None:
    """An event that is no JSON among others is dropped and counted."""
    out, repair = _through(wire(chunk({"content": "a"}), b"data: {oops\n\n", _STOP))
    assert out == wire(chunk({"content": "a"}), _STOP)
    assert repair.repairs == {"malformed": 1}


def test_the_clients_name_is_echoed() -> None:
    """Every chunk, ours too, carries the name that the client sent."""
    data = wire(chunk({"content": 'say "model":"engine"'}), chunk(finish="stop", usage=usage()))
    out, _ = _through(data, usage_wanted=True, echo=Echo("my/alias"))
    assert {found["model"] for found in _chunks(out)} == {"my/alias"}
    assert _chunks(out)[0]["choices"][0]["delta"]["content"] == 'say "model":"engine"'


_DELTAS = st.one_of(
    st.builds(lambda t: {"content": t}, st.text(max_size=5)),
    st.builds(
        call,
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, "", "{}", '{"a"', ":1}", {"a": 1}]),
        ident=st.sampled_from([None, "a", "b"]),
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
def test_any_stream_comes_out_whole_and_the_same_however_cut(
    deltas: list[dict[str, Any]], finish: str | None, wanted: bool, done: bool, places: list[int]
) -> None:
    """The output is well-formed, has one end, indexes calls from 0, and does not depend on the cuts."""
    data = wire(*(chunk(delta) for delta in deltas), chunk(finish=finish), done=done)
    out, repair = _through(data, usage_wanted=wanted)
    assert _through(data, tuple(places), usage_wanted=wanted)[0] == out
    assert repair.complete == (events(out)[-1].data == b"[DONE]") == (done or finish is not None)
    indices = [
        piece["index"]
        for found in _chunks(out)
        for choice in found.get("choices", [])
        for piece in choice["delta"].get("tool_calls") or []
    ]
    assert set(indices) == set(range(len(set(indices))))
    assert sum("usage" in found for found in _chunks(out)) == (wanted and repair.complete)


def _assembled(data: bytes, **more: Any) -> dict[str, Any]:
    assembler = Assembler(answer_id="r1", **more)
    for piece in (data[:10], data[10:]):
        assembler.feed(piece)
    found: dict[str, Any] = json.loads(assembler.end())
    return found


def test_a_stream_is_assembled_to_a_whole_answer() -> None:
    """Text, reasoning, calls, logprobs, the finish, usage and the engine's own fields come together."""
    first = chunk(
        {"role": "assistant", "reasoning_content": "h", "content": None}, system_fingerprint="fp"
    )
    logged = chunk({"content": "a"})
    logged["choices"][0]["logprobs"] = {
        "content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    }
    data = wire(
        first,
        logged,
        logged,
        chunk(call(0, '{"x"', ident="a", name="f")),
        chunk(call(0, ":1}")),
        chunk(call(0, {"y": 2}, ident="b", name="g")),
        chunk(finish="stop", usage=usage(), timings={"cache_n": 1}),
    )
    found = _assembled(data, model="alias")
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


def test_several_choices_are_assembled_each_for_itself() -> None:
    """Chunks of choices may come in any order."""
    other = [chunk({"content": text}) for text in "xy"]
    for found in other:
        found["choices"][0]["index"] = 1
    ends = chunk(finish="stop"), chunk(finish="length")
    ends[1]["choices"][0]["index"] = 1
    found = _assembled(
        wire(other[0], chunk({"content": "a"}), other[1], chunk({"content": "b"}), *ends)
    )
    assert [c["message"]["content"] for c in found["choices"]] == ["ab", "xy"]
    assert [c["finish_reason"] for c in found["choices"]] == ["stop", "length"]
    assert found["model"] == "engine"


def test_text_completions_are_assembled() -> None:
    """Their choices have text, and logprobs of four lists."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m"}
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None, "text_offset": [0]}
    pieces = [
        head | {"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]} for _ in range(2)
    ]
    found = _assembled(
        wire(*pieces, head | {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    )
    assert found["object"] == "text_completion"
    assert found["choices"][0]["text"] == "aa"
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["choices"][0]["logprobs"]["tokens"] == ["a", "a"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", UpstreamFailed),
        (wire(chunk({"content": "a"}), done=False), UpstreamFailed),
        (b"data: [DONE]\n\n", UpstreamFailed),
        (wire(chunk({"content": "a"}), b"data: {oops}\n\n", _STOP), UpstreamFailed),
        (b'data: {"error":{"message":"Loading","code":503}}\n\ndata: [DONE]\n\n', Unavailable),
        (b'data: {"error":{"message":"prompt is too long","code":null}}\n\n', PromptTooLong),
    ],
)
def test_what_is_not_whole_is_not_assembled(data: bytes, kind: type[CortexError]) -> None:
    """An engine's error, a cut and a chunk that is no JSON are errors, never a shorter answer."""
    with pytest.raises(kind):
        _assembled(data)


def _whole(calls: list[dict[str, Any]], finish: str) -> bytes:
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return json.dumps({"x": 1, "choices": [{"message": message, "finish_reason": finish}]}).encode()


def test_a_whole_answer_is_mended_too() -> None:
    """Objects become text, ids are made up, and stop after calls becomes tool_calls."""
    out, repairs = mend_answer(
        _whole([{"function": {"name": "f", "arguments": {"x": 1}}}], "stop"), "r1"
    )
    choice = json.loads(out)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"x":1}'
    assert choice["message"]["tool_calls"][0]["id"]
    assert repairs == {"arguments_object": 1, "call_id": 1, "finish_after_calls": 1}
    assert json.loads(out)["x"] == 1


@pytest.mark.parametrize(
    "body",
    [
        _whole([{"id": "a", "function": {"name": "f", "arguments": "{}"}}], "tool_calls"),
        b'{"choices": [{"message": {"content": "a"}}]}',
        b'{"tool_calls": 7, "choices": [3]}',
        b"no json",
    ],
)
def test_a_clean_answer_stays_byte_for_byte(body: bytes) -> None:
    """What needs no repair, or is no answer, is not touched."""
    assert mend_answer(body, "r1") == (body, {})
