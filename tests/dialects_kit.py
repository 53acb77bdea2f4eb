"""Helpers for tests of the dialects: engine chunks, and parsers that check the grammars that clients rely on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from cortex_common.sse import SseEvent, SseParser
from cortex_server.dialects.responses.parameters import parse_request
from cortex_server.dialects.responses.resource import Response, new_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk of a chat stream; `finish` is its finish reason, other fields are added to the chunk."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": fields.pop("finish", None)}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "engine"}
    return head | {"choices": [choice]} | fields


def call_delta(
    index: int | None, arguments: Any, *, call_id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Return a delta with one fragment of a tool call; None fields are left out."""
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    fragment = {k: v for k, v in (("index", index), ("id", call_id)) if v is not None}
    return {"tool_calls": [fragment | {"function": function}]}


def usage(prompt: int = 11, completion: int = 5, **more: Any) -> dict[str, Any]:
    """Return a usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    } | more


def usage_chunk(**counts: int) -> dict[str, Any]:
    """Return the extra chunk at the end that has only usage."""
    return chunk() | {"choices": [], "usage": usage(**counts)}


def sse_stream(*chunks: dict[str, Any] | bytes | str, done: bool = True) -> bytes:
    """Return the bytes of a stream: bytes are copied, dictionaries become events with compact JSON."""
    out = b""
    for item in chunks:
        if isinstance(item, bytes):
            out += item
        else:
            text = json.dumps(item, separators=(",", ":"), ensure_ascii=False)
            out += b"data: " + text.encode() + b"\n\n"
    return out + (b"data: [DONE]\n\n" if done else b"")


def split_bytes(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Yield the bytes in pieces, cut at the given offsets (modulo the length)."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        yield data[start:end]


def run_translator(
    feed: Callable[[bytes], bytes],
    end: Callable[[], bytes],
    data: bytes,
    cuts: Iterable[int] = (),
) -> bytes:
    """Feed the bytes to a stream translator and return its whole output."""
    return b"".join(feed(piece) for piece in split_bytes(data, cuts)) + end()


def parse_events(data: bytes) -> list[SseEvent]:
    """Parse the events of a complete stream, each of which must end with a blank line."""
    parser = SseParser()
    parsed = parser.feed(data)
    assert parser.close() == [], "the stream ends inside an event"
    return parsed


def response_in_progress(**parameters: Any) -> Response:
    """Return the response to a request with these parameters, before the engine has answered."""
    body = {"model": "gpt-x", "input": "hi"} | parameters
    request = parse_request(json.dumps(body).encode())
    return new_response(request, response_id="resp_1", created=7.5)


def responses_stream(**more: Any) -> ResponsesStreamWriter:
    """Return the writer of a stream of the Responses API."""
    return ResponsesStreamWriter(response_in_progress(), now=lambda: 9.5, **more)


@dataclass
class ParsedStream:
    """A stream as a client sees it, in either dialect.

    Attributes:
        blocks: (type, content, extra) in order; extra is (id, name) for a tool call, whose content is its arguments.
        stop: the stop reason or status; "error" if the stream failed.
        last: the error, or the final response.
    """

    blocks: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    stop: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    stop_sequence: str | None = None


def parse_messages_stream(data: bytes) -> ParsedStream:
    """Check a stream against the grammar of Anthropic's Messages API and parse it."""
    parsed = ParsedStream()
    state = "new"
    block_type, content, extra = "", "", ()
    index = -1
    for name, raw, _ in parse_events(data):
        assert b"\n" not in raw
        event = json.loads(raw)
        assert event["type"] == name, "the event name and the type in its data are equal"
        assert state not in {"stopped", "failed"}, f"{name} after the end"
        if name == "error":
            assert event["error"]["type"]
            assert event["error"]["message"]
            state, parsed.stop, parsed.last = "failed", "error", event
            continue
        if name == "message_start":
            assert state == "new"
            message = event["message"]
            assert (message["type"], message["role"], message["content"]) == (
                "message",
                "assistant",
                [],
            )
            assert message["stop_reason"] is None
            assert {"input_tokens", "output_tokens"} <= message["usage"].keys()
            state = "between"
            continue
        assert state != "new", f"{name} before message_start"
        if name == "ping":
            continue
        if name == "content_block_start":
            assert state == "between"
            index += 1
            assert event["index"] == index
            block = event["content_block"]
            block_type, content = block["type"], ""
            assert (
                block
                == {
                    "text": {"type": "text", "text": ""},
                    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
                    "tool_use": {
                        "type": "tool_use",
                        "id": block.get("id"),
                        "name": block.get("name"),
                        "input": {},
                    },
                }[block_type]
            )
            extra = (block["id"], block["name"]) if block_type == "tool_use" else ()
            state = "inside"
        elif name == "content_block_delta":
            assert state == "inside"
            assert event["index"] == index
            delta = event["delta"]
            field_of = {
                ("text", "text_delta"): "text",
                ("thinking", "thinking_delta"): "thinking",
                ("tool_use", "input_json_delta"): "partial_json",
                ("thinking", "signature_delta"): "signature",
            }[block_type, delta["type"]]
            if field_of == "signature":
                state = "signed"
            else:
                content += delta[field_of]
        elif name == "content_block_stop":
            assert state == ("signed" if block_type == "thinking" else "inside")
            assert event["index"] == index
            assert content or block_type == "tool_use", "an empty block"
            parsed.blocks.append((block_type, content, extra))
            state = "between"
        elif name == "message_delta":
            assert state == "between"
            parsed.stop, parsed.stop_sequence = (
                event["delta"]["stop_reason"],
                event["delta"]["stop_sequence"],
            )
            parsed.usage = event["usage"]
            state = "delta"
        else:
            assert name == "message_stop"
            assert state == "delta"
            state = "stopped"
    assert state in {"stopped", "failed"}, f"the stream ends {state}"
    return parsed


_ITEM_OF = {
    "message": "text",
    "reasoning": "thinking",
    "function_call": "tool_use",
    "custom_tool_call": "custom_tool_use",
}


def parse_responses_stream(data: bytes) -> ParsedStream:
    """Check a stream against the grammar of the Responses API and parse it."""
    parsed = ParsedStream()
    expected = ["response.created", "response.in_progress"]
    item: dict[str, Any] | None = None
    text, steps = "", []
    output: list[dict[str, Any]] = []
    error: dict[str, Any] | None = None
    *events, last = parse_events(data)
    assert last.data == b"[DONE]"
    for number, (name, raw, _) in enumerate(events):
        event = json.loads(raw)
        assert event["type"] == name
        assert event["sequence_number"] == number
        assert parsed.stop is None, f"{name} after the end"
        if expected:
            assert name == expected.pop(0)
            assert event["response"]["status"] == "in_progress"
            continue
        if name == "error":
            assert (event["code"], event["message"], event["param"]) == tuple(
                event["error"][key] for key in ("code", "message", "param")
            )
            error = event
            continue
        if name in {"response.completed", "response.incomplete", "response.failed"}:
            assert item is None or name == "response.failed"
            response = event["response"]
            assert (error is not None) == (name == "response.failed"), "an error comes first"
            assert name == f"response.{response['status']}"
            assert response["output"] == output
            parsed.stop = "error" if response["status"] == "failed" else response["status"]
            parsed.usage, parsed.last = response["usage"], response
            continue
        assert event["output_index"] == len(output)
        if name == "response.output_item.added":
            assert item is None
            item, text, steps = event["item"], "", []
            assert item["status"] == "in_progress"
            continue
        assert item is not None, f"{name} without an item"
        if name == "response.output_item.done":
            done = event["item"]
            assert (done["id"], done["type"]) == (item["id"], item["type"])
            _check_steps(done["type"], steps)
            block_type = _ITEM_OF[done["type"]]
            extra = (done["call_id"], done["name"]) if block_type.endswith("tool_use") else ()
            content = _content(done) if text or block_type != "tool_use" else ""
            assert content == text
            parsed.blocks.append((block_type, content, extra))
            output.append(done)
            item = None
            continue
        assert event["item_id"] == item["id"]
        steps.append(name)
        if name.endswith(".delta"):
            text += event["delta"]
        elif name.endswith(("text.done", "arguments.done", "input.done")):
            done_text = event.get("text", event.get("arguments", event.get("input")))
            assert done_text in {text, text or "{}"}
    assert parsed.stop is not None, "the stream has no last event"
    return parsed


def _content(item: dict[str, Any]) -> str:
    match item["type"]:
        case "message":
            found = item["content"][0]["text"]
        case "reasoning":
            found = item["summary"][0]["text"]
        case "custom_tool_call":
            found = item["input"]
        case _:
            found = item["arguments"]
    assert isinstance(found, str)
    return found


def _check_steps(block_type: str, steps: list[str]) -> None:
    """Check that the events of an item come in the order that SDKs rely on."""
    frames = {
        "message": (
            ["response.content_part.added"],
            "response.output_text.delta",
            ["response.output_text.done", "response.content_part.done"],
        ),
        "reasoning": (
            ["response.reasoning_summary_part.added"],
            "response.reasoning_summary_text.delta",
            ["response.reasoning_summary_text.done", "response.reasoning_summary_part.done"],
        ),
        "function_call": (
            [],
            "response.function_call_arguments.delta",
            ["response.function_call_arguments.done"],
        ),
        "custom_tool_call": (
            [],
            "response.custom_tool_call_input.delta",
            ["response.custom_tool_call_input.done"],
        ),
    }
    head, delta, foot = frames[block_type]
    middle = steps[len(head) : len(steps) - len(foot)]
    assert steps[: len(head)] == head
    assert steps[len(steps) - len(foot) :] == foot
    assert set(middle) <= {delta}


_JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["text", "error", "x"]), inner, max_size=2),
    ),
    max_leaves=4,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(inner_path for key, item in inner for inner_path in _paths(item, (*path, key)))]


def _replace_at(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replace_at(copy[path[0]], path[1:], junk)
    return copy


def with_junk(value: Any) -> st.SearchStrategy[Any]:
    """Return a strategy that replaces the value, or one of its parts, with junk."""
    return st.builds(
        lambda path, junk: _replace_at(value, path, junk), st.sampled_from(_paths(value)), _JUNK
    )
