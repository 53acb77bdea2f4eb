"""OpenAI's API in the embedded worker: parsing of requests and formatting of answers (no I/O)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cortex_common.errors import BadRequest, JsonValue, MalformedBody
from cortex_common.schema.msgspec_errors import parse_validation_error

Kind = Literal["chat", "text"]


class StreamOptions(Struct, frozen=True):
    """`stream_options` of a request."""

    include_usage: bool = False


class Grammar(Struct, frozen=True):
    """A constraint on the answer, like the `grammar` field of mistral.rs's server.

    Attributes:
        type: the language of `value`.
        value: the grammar; can be an object for json_schema.
    """

    type: Literal["regex", "lark", "json_schema", "llguidance"]
    value: str | dict[str, Any]


class _Sampling(Struct, frozen=True, kw_only=True):
    model: str = "default"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: str | tuple[str, ...] | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    grammar: Grammar | None = None
    n: Annotated[int, Meta(ge=1)] | None = None


class ChatRequest(_Sampling, frozen=True, kw_only=True):
    """The supported fields of POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class TextRequest(_Sampling, frozen=True, kw_only=True):
    """The supported fields of POST /v1/completions."""

    prompt: str | list[str]
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


# Not strict: an integer can be sent as 5.0 or "5". Unknown fields are not errors, because clients send many.
_chat_decoder = msgspec.json.Decoder(ChatRequest, strict=False)
_text_decoder = msgspec.json.Decoder(TextRequest, strict=False)


@dataclass(frozen=True, slots=True)
class Job:
    """One generation, validated and independent of OpenAI's request formats.

    Attributes:
        messages: role and content of each turn; a raw prompt is one turn with the role `RAW`.
        grammar: type and text of the grammar that constrains the answer.
        tools: each tool as JSON; empty if the model must not call any.
        include_usage: the client requested the extra usage chunk.
    """

    kind: Kind
    messages: tuple[dict[str, Any], ...]
    stream: bool
    include_usage: bool
    sampling: _Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    grammar: tuple[str, str] | None = None
    tools: tuple[str, ...] = ()
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete tool call; the engine never splits one into chunks."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation."""

    prompt_tokens: int
    completion_tokens: int

    def wire(self) -> dict[str, JsonValue]:
        """Return OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """The engine's output of one step; the last one has a finish reason and the usage."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


RAW = "cortex-raw-prompt"
"""The role of a turn that the chat template renders unchanged: see `mistral.passthrough_template`."""


def parse_job(kind: Kind, body: bytes) -> Job:
    """Parse and validate a request.

    Raises:
        MalformedBody: the body is not JSON.
        BadRequest: a field is missing, invalid or not supported; `param` names it.
    """
    try:
        return _chat(body) if kind == "chat" else _text(body)
    except msgspec.ValidationError as error:
        what, where = parse_validation_error(str(error))
        missing = what.partition("missing required field ")[2]
        param = ".".join(part for part in (where, missing) if part)
        raise BadRequest(f"{param or 'body'}: {what}", param=param or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error


def _chat(body: bytes) -> Job:
    request = _chat_decoder.decode(body)
    grammar = _grammar(request.grammar) or _response_format(request.response_format)
    return Job(
        kind="chat",
        messages=tuple(_message(turn) for turn in request.messages),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        grammar=grammar,
        tools=_tools(request),
        reasoning_effort=request.reasoning_effort,
        **_common(request),
    )


def _text(body: bytes) -> Job:
    request = _text_decoder.decode(body)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if len(prompts) != 1:
        raise BadRequest("this engine supports one prompt per request", param="prompt")
    for name in ("echo", "suffix"):
        if getattr(request, name):
            raise BadRequest(f"this engine does not support {name}", param=name)
    if request.best_of not in {None, 1}:
        raise BadRequest("this engine supports only best_of=1", param="best_of")
    return Job(
        kind="text",
        messages=({"role": RAW, "content": prompts[0]},),
        max_tokens=request.max_tokens or 16,
        grammar=_grammar(request.grammar),
        **_common(request),
    )


def _common(request: _Sampling) -> dict[str, Any]:
    if request.n not in {None, 1}:
        raise BadRequest("this engine returns one answer per request: n must be 1", param="n")
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop or ()
    options = request.stream_options
    return {
        "stream": request.stream,
        "include_usage": options is not None and options.include_usage,
        "sampling": request,
        "stop": stop,
    }


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role == RAW:
        raise BadRequest("every message needs a role", param="messages")
    message: dict[str, Any] = {"role": role, "content": _plain_text(content)}
    if calls := turn.get("tool_calls"):
        message["tool_calls"] = calls
    if isinstance(answered := turn.get("tool_call_id"), str):
        message["tool_call_id"] = answered
    return message


def _plain_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        other = next((p.get("type") for p in content if p.get("type") != "text"), None)
        if other is None:
            return "".join(str(part.get("text", "")) for part in content)
        raise BadRequest(f"this engine supports only text, not {other}", param="messages")
    raise BadRequest("content must be text or a list of parts", param="messages")


def _tools(request: ChatRequest) -> tuple[str, ...]:
    if not request.tools or request.tool_choice == "none":
        return ()
    if (
        request.tool_choice not in {None, "auto"}
        if isinstance(request.tool_choice, str)
        else request.tool_choice
    ):
        raise BadRequest("this engine can't force a tool call: use auto", param="tool_choice")
    return tuple(json.dumps(tool) for tool in request.tools)


def _grammar(grammar: Grammar | None) -> tuple[str, str] | None:
    if grammar is None:
        return None
    value = grammar.value
    return grammar.type, value if isinstance(value, str) else json.dumps(value)


def _response_format(response_format: dict[str, Any] | None) -> tuple[str, str] | None:
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", '{"type":"object"}'
    if (
        response_format
        and kind == "json_schema"
        and isinstance(response_format.get("json_schema"), dict)
    ):
        return "json_schema", json.dumps(response_format["json_schema"].get("schema", {}))
    raise BadRequest(f"response_format {kind!r} is not supported", param="response_format")


@dataclass(slots=True)
class Answer:
    """Formats the pieces of one generation, as a stream of chunks or as one object.

    Attributes:
        id: id of the completion, such as "chatcmpl-...".
        created: Unix seconds.
    """

    job: Job
    id: str
    model: str
    created: int
    _started: bool = field(default=False, init=False)

    def chunks(self, piece: Piece) -> Iterable[bytes]:
        """Yield the events of a piece; after the last piece also the usage (if requested) and [DONE]."""
        if self.job.kind == "chat" and not self._started:
            yield self._event([self._choice({"role": "assistant", "content": ""}, None)])
        self._started = True
        if self.job.kind == "text":
            if piece.text or piece.finish_reason:
                yield self._event([self._text_choice(piece.text, piece.finish_reason)])
        else:
            delta = _delta(piece)
            if delta:
                yield self._event([self._choice(delta, None)])
            if piece.finish_reason:
                yield self._event([self._choice({}, piece.finish_reason)])
        if piece.finish_reason:
            if self.job.include_usage and piece.usage is not None:
                yield self._event([], piece.usage)
            yield b"data: [DONE]\n\n"

    def whole(self, pieces: Sequence[Piece]) -> bytes:
        """Return the answer to a request that does not stream."""
        text = "".join(piece.text for piece in pieces)
        finish = pieces[-1].finish_reason if pieces else None
        usage = next((p.usage for p in reversed(pieces) if p.usage is not None), None)
        if self.job.kind == "text":
            choice = self._text_choice(text, finish)
        else:
            choice = {"index": 0, "message": _message_of(text, pieces), "logprobs": None}
            choice["finish_reason"] = finish
        body = self._head("chat.completion") | {"choices": [choice]}
        return _json(body | ({"usage": usage.wire()} if usage else {}))

    def _head(self, chat_object: str) -> dict[str, JsonValue]:
        kind = chat_object if self.job.kind == "chat" else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[JsonValue], usage: Usage | None = None) -> bytes:
        body = self._head("chat.completion.chunk") | {"choices": choices}
        if usage is not None:
            body["usage"] = usage.wire()
        return b"data: " + _json(body) + b"\n\n"

    @staticmethod
    def _choice(delta: dict[str, JsonValue], finish: str | None) -> JsonValue:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    @staticmethod
    def _text_choice(text: str, finish: str | None) -> dict[str, JsonValue]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _delta(piece: Piece) -> dict[str, JsonValue]:
    delta: dict[str, JsonValue] = {}
    if piece.text:
        delta["content"] = piece.text
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.tool_calls:
        delta["tool_calls"] = [{"index": c.index} | _call(c) for c in piece.tool_calls]
    return delta


def _message_of(text: str, pieces: Sequence[Piece]) -> dict[str, JsonValue]:
    calls = [_call(call) for piece in pieces for call in piece.tool_calls]
    reasoning = "".join(piece.reasoning for piece in pieces)
    message: dict[str, JsonValue] = {
        "role": "assistant",
        "content": text or (None if calls else ""),
    }
    if calls:
        message["tool_calls"] = calls
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def _call(call: ToolCall) -> dict[str, JsonValue]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _json(body: dict[str, JsonValue]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
