"""Types of the Responses API's responses, and the translation of an unstreamed chat completion to one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import Busy, CortexError, PromptTooLong, Unavailable
from cortex_server.dialects.chat import AssistantMessage, ToolCallDelta, Usage, arguments_text
from cortex_server.dialects.engine_errors import first_choice
from cortex_server.dialects.tool_calls import ToolCallIds

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    """The text of a message item."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    """The text of a reasoning item."""

    text: str


class MessageItem(Struct, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """Reasoning of the model; sent as a summary, which is what clients display."""

    id: str
    summary: list[SummaryText]
    status: ItemStatus


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A function call, with the namespace in which the client declared the function."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus
    namespace: str | UnsetType = UNSET


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(Struct):
    """`usage.input_tokens_details`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """`usage.output_tokens_details`."""

    reasoning_tokens: int


class ResponsesUsage(Struct):
    """Token counts; input tokens include cached ones."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class Response(Struct):
    """A response, complete or in progress."""

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
    """Translate an unstreamed chat completion to a response.

    Args:
        body: the engine's JSON.
        response_id: unique among responses.
        model: the name that the client sent.
        created: Unix seconds.
        call_ids: see `TranslatedRequest`.
        only_first_call: see `TranslatedRequest`.
        function_names: see `TranslatedRequest`.

    Raises:
        CortexError: the body is an error of the engine, or not a chat completion.
    """
    choice, usage = first_choice(body)
    message = choice.message or AssistantMessage()
    ids = ToolCallIds(call_ids, response_id, "call")
    calls = (message.tool_calls or [])[: 1 if only_first_call else None]
    output: list[Item] = list(_text_items(message, response_id))
    for call in calls:
        item_id = f"fc_{response_id}_{len(output)}"
        output.append(_function_call(call, item_id, ids, function_names or {}))
    incomplete = to_incomplete_details(choice.finish_reason)
    if incomplete is not None and output:
        output[-1].status = "incomplete"
    response = Response(
        id=response_id,
        created_at=int(created),
        model=model,
        status="completed" if incomplete is None else "incomplete",
        output=output,
        usage=to_usage(usage),
        incomplete_details=incomplete,
    )
    return msgspec.json.encode(response)


def to_usage(usage: Usage | None) -> ResponsesUsage:
    """Translate an engine's usage; all counts are zero if it reported none."""
    usage = usage or Usage()
    return ResponsesUsage(
        input_tokens=usage.prompt,
        input_tokens_details=InputTokensDetails(usage.cached),
        output_tokens=usage.completion,
        output_tokens_details=OutputTokensDetails(usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )


def to_incomplete_details(finish_reason: str | None) -> IncompleteDetails | None:
    """Return why a response with this finish reason is incomplete; None if it is complete."""
    match finish_reason:
        case "length":
            return IncompleteDetails("max_output_tokens")
        case "content_filter":
            return IncompleteDetails("content_filter")
        case _:
            return None


def to_error(error: CortexError) -> ResponseError:
    """Translate an error to the codes that clients of the Responses API know (captured from Codex)."""
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    elif isinstance(error, Busy):
        code = "rate_limit_exceeded"
    elif isinstance(error, Unavailable):
        code = "server_is_overloaded"
    else:
        code = "invalid_prompt" if error.status == 400 else "server_error"
    return ResponseError(code, ". ".join(p.rstrip(".") for p in (error.message, *error.hints)))


def _text_items(message: AssistantMessage, response_id: str) -> Iterator[Item]:
    if message.reasoning_text:
        summary = [SummaryText(message.reasoning_text)]
        yield ReasoningItem(f"rs_{response_id}_0", summary, "completed")
    text = (message.text or "") + (message.refusal or "")
    if text:
        yield MessageItem(f"msg_{response_id}_1", "completed", [OutputText(text)])


def _function_call(
    call: ToolCallDelta, item_id: str, ids: ToolCallIds, names: Mapping[str, tuple[str, str]]
) -> Item:
    function = call.function
    flat_name = (function and function.name) or ""
    namespace, name = names.get(flat_name, (UNSET, flat_name))
    try:
        arguments = arguments_text(function.arguments) if function else ""
    except ValueError:
        arguments = ""
    call_id = ids.assign(call.id or "")
    return FunctionCallItem(item_id, call_id, name, arguments or "{}", "completed", namespace)
