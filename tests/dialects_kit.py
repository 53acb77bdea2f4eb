"""What the tests of the dialects share: engines' chunks, and checkers of the grammars that clients rely on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from cortex_http.sse import SseEvent, SseParser


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat stream; `finish` is its finish reason, other fields stand beside choices."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": fields.pop("finish", None)}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "engine"}
    return head | {"choices": [choice]} | fields


def call(
    index: int | None, arguments: Any, *, ident: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """A delta with one piece of a call; what is None is left out."""
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    piece = {k: v for k, v in (("index", index), ("id", ident)) if v is not None}
    return {"tool_calls": [piece | {"function": function}]}


def usage(prompt: int = 11, completion: int = 5, **more: Any) -> dict[str, Any]:
    """A usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    } | more


def usage_chunk(**of: int) -> dict[str, Any]:
    """The extra chunk at the end that carries only usage."""
    return chunk() | {"choices": [], "usage": usage(**of)}


def wire(*chunks: dict[str, Any] | bytes | str, done: bool = True) -> bytes:
    """The bytes of a stream; bytes stand for themselves, dictionaries are compact JSON in an event."""
    out = b""
    for item in chunks:
        if isinstance(item, bytes):
            out += item
        else:
            text = json.dumps(item, separators=(",", ":"), ensure_ascii=False)
            out += b"data: " + text.encode() + b"\n\n"
    return out + (b"data: [DONE]\n\n" if done else b"")


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """The bytes in pieces."""
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    for start, end in itertools.pairwise(edges):
        yield data[start:end]


def run(
    feed: Callable[[bytes], bytes],
    end: Callable[[], bytes],
    data: bytes,
    places: Iterable[int] = (),
) -> bytes:
    """Everything that comes out of a stream translator."""
    return b"".join(feed(piece) for piece in cut(data, places)) + end()


def events(data: bytes) -> list[SseEvent]:
    """The events of a whole stream, all of which must be closed by a blank line."""
    parser = SseParser()
    found = parser.feed(data)
    assert parser.close() == [], "the stream ends inside an event"
    return found


@dataclass
class Told:
    """What a client knows after a stream, in either dialect.

    Attributes:
        blocks: (kind, content, extra) in order: the text or thinking, or a call's arguments with (id, name).
        stop: why it ended; "error" when it failed.
        last: the data of the last event with a meaning.
    """

    blocks: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    stop: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    stop_sequence: str | None = None


def anthropic_told(data: bytes) -> Told:
    """Check a stream against the grammar of Anthropic's Messages API and collect what it says."""
    told = Told()
    state = "new"
    kind, content, extra = "", "", ()
    index = -1
    for name, raw in events(data):
        assert b"\n" not in raw
        event = json.loads(raw)
        assert event["type"] == name, "every event names its type twice"
        assert state not in {"stopped", "failed"}, f"{name} after the end"
        if name == "error":
            assert event["error"]["type"]
            assert event["error"]["message"]
            state, told.stop, told.last = "failed", "error", event
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
            kind, content = block["type"], ""
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
                }[kind]
            )
            extra = (block["id"], block["name"]) if kind == "tool_use" else ()
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
            }[kind, delta["type"]]
            if field_of == "signature":
                state = "signed"
            else:
                content += delta[field_of]
        elif name == "content_block_stop":
            assert state == ("signed" if kind == "thinking" else "inside")
            assert event["index"] == index
            assert content or kind == "tool_use", "an empty block"
            told.blocks.append((kind, content, extra))
            state = "between"
        elif name == "message_delta":
            assert state == "between"
            told.stop, told.stop_sequence = (
                event["delta"]["stop_reason"],
                event["delta"]["stop_sequence"],
            )
            told.usage = event["usage"]
            state = "delta"
        else:
            assert name == "message_stop"
            assert state == "delta"
            state = "stopped"
    assert state in {"stopped", "failed"}, f"the stream ends {state}"
    return told


_ITEM_OF = {"message": "text", "reasoning": "thinking", "function_call": "tool_use"}


def responses_told(data: bytes) -> Told:
    """Check a stream against the grammar of the Responses API and collect what it says."""
    told = Told()
    expected = ["response.created", "response.in_progress"]
    item: dict[str, Any] | None = None
    said, steps = "", []
    output: list[dict[str, Any]] = []
    for number, (name, raw) in enumerate(events(data)):
        event = json.loads(raw)
        assert event["type"] == name
        assert event["sequence_number"] == number
        assert told.stop is None, f"{name} after the end"
        if expected:
            assert name == expected.pop(0)
            assert event["response"]["status"] == "in_progress"
            continue
        if name in {"response.completed", "response.incomplete", "response.failed"}:
            assert item is None or name == "response.failed"
            response = event["response"]
            assert name == f"response.{response['status']}"
            assert response["output"] == output
            told.stop = "error" if response["status"] == "failed" else response["status"]
            told.usage, told.last = response["usage"], response
            continue
        assert event["output_index"] == len(output)
        if name == "response.output_item.added":
            assert item is None
            item, said, steps = event["item"], "", []
            assert item["status"] == "in_progress"
            continue
        assert item is not None, f"{name} without an item"
        if name == "response.output_item.done":
            done = event["item"]
            assert (done["id"], done["type"]) == (item["id"], item["type"])
            _check_steps(done["type"], steps)
            kind = _ITEM_OF[done["type"]]
            extra = (done["call_id"], done["name"]) if kind == "tool_use" else ()
            whole = _content(done) if said or kind != "tool_use" else ""
            assert whole == said
            told.blocks.append((kind, whole, extra))
            output.append(done)
            item = None
            continue
        assert event["item_id"] == item["id"]
        steps.append(name)
        if name.endswith(".delta"):
            said += event["delta"]
        elif name.endswith(("text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) in {said, said or "{}"}
    assert told.stop is not None, "the stream has no last event"
    return told


def _content(item: dict[str, Any]) -> str:
    match item["type"]:
        case "message":
            found = item["content"][0]["text"]
        case "reasoning":
            found = item["summary"][0]["text"]
        case _:
            found = item["arguments"]
    assert isinstance(found, str)
    return found


def _check_steps(kind: str, steps: list[str]) -> None:
    """The events inside an item come in the order that SDKs build upon."""
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
    }
    head, delta, foot = frames[kind]
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


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _with(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(copy[path[0]], path[1:], junk)
    return copy


def spoiled(value: Any) -> st.SearchStrategy[Any]:
    """The value with junk in the place of one of its parts, or of itself."""
    return st.builds(
        lambda path, junk: _with(value, path, junk), st.sampled_from(_places(value)), _JUNK
    )
