"""The shapes of OpenAI's Responses API that we answer with.

Source: `Response`, its items and stream events as typed in the openai SDK.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import Busy, CortexError, PromptTooLong, Unavailable
from cortex_server.dialects.chat import Usage

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
