"""The response object of the Responses API and its items."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_server.dialects.responses.parameters import ResponsesRequest, TextFormat
from cortex_server.dialects.responses.tools import echo_tools
from cortex_server.dialects.usage import Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]

_AUTO = Raw(b'"auto"')


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


class CustomToolCallItem(Struct, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool, whose input is plain text."""

    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus
    namespace: str | UnsetType = UNSET


Item = MessageItem | ReasoningItem | FunctionCallItem | CustomToolCallItem


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
    """Why a response is incomplete: "max_output_tokens", "content_filter", or an engine's own word."""

    reason: str


class ReasoningEcho(Struct):
    """`reasoning` of a response."""

    effort: str | None = None
    summary: str | None = None


class FormatEcho(Struct):
    """`text.format` of a response; only `json_schema` has more than a type."""

    type: str
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    schema: Raw | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class TextEcho(Struct):
    """`text` of a response."""

    format: FormatEcho
    verbosity: str


class Response(Struct):
    """A response, complete or in progress, with the parameters that were asked for, or their defaults."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    completed_at: int | None = None
    output: list[Item] = msgspec.field(default_factory=list)
    usage: ResponsesUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    object: Literal["response"] = "response"
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Raw] = msgspec.field(default_factory=list)
    tool_choice: Raw = _AUTO
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    text: TextEcho = msgspec.field(default_factory=lambda: TextEcho(FormatEcho("text"), "medium"))
    reasoning: ReasoningEcho = msgspec.field(default_factory=ReasoningEcho)
    truncation: str = "disabled"
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    store: bool = False
    background: bool = False
    service_tier: str = "default"
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None

    @property
    def item_prefix(self) -> str:
        """What follows the type in the ids of the items."""
        return self.id.removeprefix("resp_")


def new_response(
    request: ResponsesRequest, *, response_id: str, created: float, stored: bool = False
) -> Response:
    """Return the response to a request, before the engine has answered.

    Args:
        request: the client's request.
        response_id: unique among responses, such as "resp_" and random digits.
        created: Unix seconds.
        stored: whether the complete response will be stored.
    """
    choice = bytes(request.tool_choice)
    asked = request.reasoning
    reasoning = asked and ReasoningEcho(asked.effort, asked.summary or asked.generate_summary)
    verbosity = (request.text and request.text.verbosity) or "medium"
    return Response(
        id=response_id,
        created_at=int(created),
        model=request.model,
        instructions=request.instructions,
        previous_response_id=request.previous_response_id,
        tools=echo_tools(request.tools or ()),
        tool_choice=Raw(choice) if choice not in {b"", b"null"} else _AUTO,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        max_tool_calls=request.max_tool_calls,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        max_output_tokens=request.max_output_tokens,
        text=TextEcho(_format_echo(request.text.format if request.text else None), verbosity),
        reasoning=reasoning or ReasoningEcho(),
        truncation=request.truncation or "disabled",
        metadata=request.metadata or {},
        store=stored,
        safety_identifier=request.safety_identifier,
        prompt_cache_key=request.prompt_cache_key,
        user=request.user,
    )


def to_usage(usage: Usage | None, prompt_tokens: int = 0) -> ResponsesUsage:
    """Translate an engine's usage; if it reported none, the input is an estimate and the output is zero."""
    usage = usage or Usage(prompt_tokens=prompt_tokens)
    return ResponsesUsage(
        input_tokens=usage.prompt,
        input_tokens_details=InputTokensDetails(usage.cached),
        output_tokens=usage.completion,
        output_tokens_details=OutputTokensDetails(usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )


def _format_echo(asked: TextFormat | None) -> FormatEcho:
    if asked is None or asked.type != "json_schema":
        return FormatEcho(asked.type if asked else "text")
    return FormatEcho(
        asked.type, asked.name, asked.description, asked.schema, strict=bool(asked.strict)
    )
