"""Types of the OpenAI chat completions API: requests sent to engines, and the responses they return.

Requests are strict. In responses every field can be missing or null, unknown fields are ignored, and the arguments of a
tool call stay raw, because some engines send an object instead of a string. What has another type is decoded by
`lenient`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_server.dialects.lenient import UnreadableContent, decode_leniently, lenient_string
from cortex_server.dialects.usage import Usage

T = TypeVar("T")

# --- requests -----------------------------------------------------------------------------------


class ImageUrl(Struct, frozen=True):
    """The location of an image: a URL, or a data URL that contains it; `detail` is the resolution to look at it."""

    url: str
    detail: str | UnsetType = UNSET


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A text part of a user message."""

    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image part of a user message."""

    image_url: ImageUrl


Part = TextPart | ImagePart


class FunctionCall(Struct, frozen=True):
    """The function of a tool call; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """A complete tool call in an assistant message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Struct):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Part]
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class Function(Struct, frozen=True):
    """A function that the model can call; `parameters` is its JSON schema, verbatim."""

    name: str
    parameters: Raw
    description: str | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class Tool(Struct, frozen=True):
    """An entry of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class FunctionName(Struct, frozen=True):
    """The `function` of a `ToolChoice`."""

    name: str


class ToolChoice(Struct, frozen=True):
    """A `tool_choice` that names a function."""

    function: FunctionName
    type: Literal["function"] = "function"


class JsonSchema(Struct, frozen=True):
    """The JSON schema that the response must follow."""

    name: str
    schema: Raw
    strict: bool | UnsetType = UNSET


class ResponseFormat(Struct, frozen=True):
    """`response_format`."""

    type: Literal["json_schema", "json_object"]
    json_schema: JsonSchema | UnsetType = UNSET


class StreamOptions(Struct, frozen=True):
    """`stream_options`; usage is always requested."""

    include_usage: bool = True


class ThinkingSwitch(Struct, frozen=True):
    """`thinking` of the APIs of DeepSeek and Moonshot."""

    type: Literal["enabled", "disabled"]


class ChatRequest(Struct):
    """The body of POST /v1/chat/completions; UNSET fields are not sent."""

    model: str
    messages: list[Message]
    max_tokens: int | UnsetType = UNSET
    max_completion_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    stop: list[str] | UnsetType = UNSET
    tools: list[Tool] | UnsetType = UNSET
    tool_choice: str | ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    response_format: ResponseFormat | UnsetType = UNSET
    reasoning_effort: str | UnsetType = UNSET
    enable_thinking: bool | UnsetType = UNSET
    thinking_budget_tokens: int | UnsetType = UNSET
    thinking: ThinkingSwitch | UnsetType = UNSET
    continue_final_message: bool | UnsetType = UNSET
    add_generation_prompt: bool | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    stream_options: StreamOptions | UnsetType = UNSET


class ToolName(NamedTuple):
    """The name under which a client declared a tool that the engine knows as a function of another name.

    Attributes:
        name: the tool.
        namespace: the namespace, if it is in one.
        custom: whether the tool takes plain text instead of an object.
    """

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class TranslatedRequest:
    """A client's request as a chat request, with what is needed to translate the response back.

    Attributes:
        body: the body of POST /v1/chat/completions.
        call_ids: ids of tool calls in earlier turns, which the response must not reuse.
        only_first_call: return only the first tool call, because the client disabled parallel calls and the engine
            has no parameter for that.
        dropped: parts of the request that have no counterpart and were left out, for the log.
        tool_names: names of functions, mapped to the names of the client's tools where these differ.
    """

    body: bytes
    call_ids: frozenset[str] = frozenset()
    only_first_call: bool = False
    dropped: tuple[str, ...] = ()
    tool_names: Mapping[str, ToolName] = field(default_factory=dict)


def unset_if_none(value: T | None) -> T | UnsetType:
    """Return the value, or UNSET for None, so that the field is not sent."""
    return UNSET if value is None else value


# --- responses ----------------------------------------------------------------------------------


class FunctionDelta(Struct):
    """The `function` of a `ToolCallDelta`."""

    name: str | None = None
    arguments: Raw = Raw()


class ToolCallDelta(Struct):
    """An entry of `tool_calls`: a fragment in a delta, or a whole call in a message."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class ReasoningDetail(Struct):
    """An entry of OpenRouter's `reasoning_details`; encrypted entries have neither field."""

    text: str | None = None
    summary: str | None = None


class AssistantMessage(Struct):
    """The delta of a chunk, or the message of an unstreamed response; both have the same fields.

    `function_call` is the older form of a single tool call.
    """

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None

    @property
    def reasoning_text(self) -> str | None:
        """The reasoning, under one of the three names that engines use."""
        if text := self.reasoning_content or self.reasoning:
            return text
        details = self.reasoning_details
        return "".join(d.text or d.summary or "" for d in details) if details else None

    @property
    def text(self) -> str | None:
        """The visible text."""
        return self.content

    @property
    def calls(self) -> list[ToolCallDelta]:
        """The tool calls, including an older `function_call`."""
        if not self.tool_calls and self.function_call is not None:
            return [ToolCallDelta(function=self.function_call)]
        return self.tool_calls or []


class Choice(Struct):
    """A choice of a chunk (with `delta`) or of an unstreamed response (with `message`).

    `text` is from text completions; Moonshot sends the usage of a stream in the choice.
    """

    index: int | None = None
    delta: AssistantMessage | None = None
    message: AssistantMessage | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None
    stopping_word: str | None = None
    usage: Usage | None = None

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that was matched, if the engine reports it; an integer is a token id, not a string.

        vLLM reports it as `stop_reason`, SGLang as `matched_stop`, llama.cpp as `stopping_word`.
        """
        reported = (self.stop_reason, self.matched_stop, self.stopping_word)
        return next((word for word in reported if isinstance(word, str) and word), None)


class ChatCompletion(Struct):
    """A chunk of a stream, an unstreamed response, or an error in place of either."""

    id: str | int | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Raw | UnsetType = UNSET

    @property
    def is_error(self) -> bool:
        """Whether it is an error."""
        return self.error is not UNSET and bytes(self.error) not in _NO_ERROR


_NO_ERROR = {b"null", b"false", b"{}", b'""'}

decode_strictly = msgspec.json.Decoder(ChatCompletion).decode
"""Decodes a chunk or an unstreamed response that has the types of the API."""

_strings = msgspec.json.Decoder(str)


def is_well_formed_chunk(data: bytes) -> bool:
    """Return whether a chunk has the types of the API, and no `message` in place of its `delta`."""
    try:
        choices = decode_strictly(data).choices
    except (ValueError, RecursionError):
        return False
    return all(choice.message is None for choice in choices or ())


def parse_completion(data: bytes) -> ChatCompletion:
    """Parse a chunk or an unstreamed response of an engine, leniently where necessary.

    Raises:
        UnreadableContent: it is neither, or text or a tool call in it can't be read.
    """
    try:
        return decode_strictly(data)
    except (ValueError, RecursionError):
        return _parse_leniently(data)


def _parse_leniently(data: bytes) -> ChatCompletion:
    try:
        return decode_strictly(msgspec.json.encode(decode_leniently(data)))
    except UnreadableContent:
        raise
    except (ValueError, RecursionError) as failed:
        raise UnreadableContent(f"it is not a chat completion: {failed}") from None


def arguments_text(raw: Raw) -> str:
    """Return the arguments of a tool call as JSON text, converting an object to text.

    Raises:
        ValueError: the arguments are not JSON.
    """
    data = bytes(raw)
    if not data or data == b"null":
        return ""
    if not data.startswith(b'"'):
        return data.decode("utf-8", "replace")
    try:
        return _strings.decode(data)
    except ValueError:
        return lenient_string(data)


def parse_object(text: str) -> Raw | None:
    """Return the text as raw JSON if it is one complete JSON object, else None."""
    try:
        parsed = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    return Raw(text.encode()) if isinstance(parsed, dict) else None


def arguments_object(text: str) -> Raw:
    """Return the arguments of a tool call as an object, for APIs that have no other form.

    What is not an object, such as arguments that were cut off, is kept as text under the key "arguments": the tool then
    rejects the call and the model sees why, where an empty object would call the tool with its defaults.
    """
    stripped = text.strip()
    if not stripped:
        return Raw(b"{}")
    parsed = parse_object(stripped)
    return Raw(msgspec.json.encode({"arguments": text})) if parsed is None else parsed
