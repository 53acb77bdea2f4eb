"""An engine's whole answer as a response of the Responses API."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import Busy, CortexError, PromptTooLong, Unavailable
from cortex_server.dialects.chat import CallPiece, Said, Usage, arguments_text
from cortex_server.dialects.engine_errors import read_whole
from cortex_server.dialects.tool_calls import CallIds

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    """The text of a reasoning item."""

    text: str


class MessageItem(Struct, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """What the model thinks; told as a summary, which is what clients show."""

    id: str
    summary: list[SummaryText]
    status: ItemStatus


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A call of a function, in the namespace in which the client declared it."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus
    namespace: str | UnsetType = UNSET


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputDetails(Struct):
    """`usage.input_tokens_details`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct):
    """`usage.output_tokens_details`."""

    reasoning_tokens: int


class ResponsesUsage(Struct):
    """Tokens; the input's include what the cache gave."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class Response(Struct):
    """A response, whole or on its way."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[Item]
    usage: ResponsesUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    object: Literal["response"] = "response"
    parallel_tool_calls: bool = True
    tool_choice: str = "auto"
    tools: tuple[()] = ()
    store: bool = False
    instructions: None = None
    metadata: Raw = Raw(b"{}")
    previous_response_id: None = None


def usage_of(usage: Usage | None) -> ResponsesUsage:
    """An engine's count in the terms of the Responses API; zeros when the engine did not count."""
    usage = usage or Usage()
    return ResponsesUsage(
        input_tokens=usage.prompt,
        input_tokens_details=InputDetails(usage.cached),
        output_tokens=usage.completion,
        output_tokens_details=OutputDetails(usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )


def incomplete_of(finish_reason: str | None) -> IncompleteDetails | None:
    """Why an answer with this finish reason is not whole; None when it is."""
    match finish_reason:
        case "length":
            return IncompleteDetails("max_output_tokens")
        case "content_filter":
            return IncompleteDetails("content_filter")
        case _:
            return None


def error_of(error: CortexError) -> ResponseError:
    """An error in the codes that clients of the Responses API know (captured from Codex)."""
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    elif isinstance(error, Busy):
        code = "rate_limit_exceeded"
    elif isinstance(error, Unavailable):
        code = "server_is_overloaded"
    else:
        code = "invalid_prompt" if error.status == 400 else "server_error"
    return ResponseError(code, ". ".join(p.rstrip(".") for p in (error.message, *error.hints)))


def to_response(
    body: bytes,
    *,
    response_id: str,
    model: str,
    created: float,
    call_ids: Collection[str] = (),
    only_first_call: bool = False,
    function_names: Mapping[str, tuple[str, str]] | None = None,
) -> bytes:
    """Say a chat completion as a response.

    Args:
        body: the engine's JSON.
        response_id: unique among answers.
        model: the name that the client sent.
        created: Unix seconds.
        call_ids: from `Translated`.
        only_first_call: from `Translated`.
        function_names: from `Translated`.

    Raises:
        CortexError: the body is an error of the engine, or no answer at all.
    """
    choice, usage = read_whole(body)
    said = choice.message or Said()
    ids = CallIds(call_ids, response_id, "call")
    pieces = (said.tool_calls or [])[: 1 if only_first_call else None]
    output: list[Item] = list(_prose(said, response_id))
    for piece in pieces:
        output.append(_call(piece, f"fc_{response_id}_{len(output)}", ids, function_names or {}))
    incomplete = incomplete_of(choice.finish_reason)
    if incomplete is not None and output:
        output[-1].status = "incomplete"
    response = Response(
        id=response_id,
        created_at=int(created),
        model=model,
        status="completed" if incomplete is None else "incomplete",
        output=output,
        usage=usage_of(usage),
        incomplete_details=incomplete,
    )
    return msgspec.json.encode(response)


def _prose(said: Said, response_id: str) -> Iterator[Item]:
    if said.thought:
        summary = [SummaryText(said.thought)]
        yield ReasoningItem(f"rs_{response_id}_0", summary, "completed")
    text = (said.text or "") + (said.refusal or "")
    if text:
        yield MessageItem(f"msg_{response_id}_1", "completed", [OutputText(text)])


def _call(
    piece: CallPiece, item_id: str, ids: CallIds, names: Mapping[str, tuple[str, str]]
) -> Item:
    function = piece.function
    flat = (function and function.name) or ""
    namespace, name = names.get(flat, (UNSET, flat))
    try:
        arguments = arguments_text(function.arguments) if function else ""
    except ValueError:
        arguments = ""
    call_id = ids.take(piece.id or "")
    return FunctionCallItem(item_id, call_id, name, arguments or "{}", "completed", namespace)
