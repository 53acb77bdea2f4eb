"""Types of the OpenAI chat completions API: requests sent to engines, and the responses they return.

Requests are strict. Responses are lenient: every field can be missing or null, unknown fields are ignored, and the
arguments of a tool call stay raw, because some engines send an object instead of a string.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

T = TypeVar("T")

# --- requests -----------------------------------------------------------------------------------


class ImageUrl(Struct, frozen=True):
    """The location of an image: a URL, or a data URL that contains it."""

    url: str


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


class ChatRequest(Struct):
    """The body of POST /v1/chat/completions; UNSET fields are not sent."""

    model: str
    messages: list[Message]
    max_tokens: int | UnsetType = UNSET
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

_MAX_TOKEN_COUNT = 1 << 40


class PromptTokensDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class CompletionTokensDetails(Struct, gc=False):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int | None = None


class Usage(Struct):
    """Token counts reported by the engine; completion tokens include reasoning."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @property
    def prompt(self) -> int:
        """Prompt tokens, including cached ones."""
        return self.prompt_tokens or 0

    @property
    def completion(self) -> int:
        """Completion tokens."""
        return self.completion_tokens or 0

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the engine's cache."""
        details = self.prompt_tokens_details
        return min((details.cached_tokens or 0) if details else 0, self.prompt)

    @property
    def reasoning(self) -> int:
        """Completion tokens spent on reasoning, if the engine reports them."""
        details = self.completion_tokens_details
        return (details.reasoning_tokens or 0) if details else 0

    @property
    def bounded_counts(self) -> tuple[int, int, int]:
        """Prompt, completion and cached tokens, clamped to a sane range.

        A counter must never decrease, and SQLite would reject a batch with an integer that is too large.
        """
        prompt, details = _clamp_count(self.prompt_tokens), self.prompt_tokens_details
        cached = min(_clamp_count(details.cached_tokens), prompt) if details is not None else 0
        return prompt, _clamp_count(self.completion_tokens), cached


def _clamp_count(tokens: int | None) -> int:
    return min(max(tokens or 0, 0), _MAX_TOKEN_COUNT)


class FunctionDelta(Struct):
    """The `function` of a `ToolCallDelta`."""

    name: str | None = None
    arguments: Raw = Raw()


class ToolCallDelta(Struct):
    """An entry of `tool_calls`: a fragment in a delta, or a whole call in a message."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class AssistantMessage(Struct):
    """The delta of a chunk, or the message of an unstreamed response; both have the same fields."""

    content: str | list[Raw] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None

    @property
    def reasoning_text(self) -> str | None:
        """The reasoning, under either of the two names that engines use."""
        return self.reasoning_content or self.reasoning

    @property
    def text(self) -> str | None:
        """The content, with text parts joined."""
        if not isinstance(self.content, list):
            return self.content
        return "".join(_part_text(part) for part in self.content)


class Choice(Struct):
    """A choice of a chunk (with `delta`) or of an unstreamed response (with `message`)."""

    index: int | None = None
    delta: AssistantMessage | None = None
    message: AssistantMessage | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None
    stopping_word: str | None = None

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
    error: Raw = Raw()


class _TextOnly(Struct):
    text: str = ""


_completions = msgspec.json.Decoder(ChatCompletion)
_text_parts = msgspec.json.Decoder(_TextOnly)
_strings = msgspec.json.Decoder(str)


def parse_completion(data: bytes) -> ChatCompletion | None:
    """Parse a chunk or an unstreamed response of an engine; return None if it is neither."""
    try:
        return _completions.decode(data)
    except (ValueError, RecursionError):
        return None


def arguments_text(raw: Raw) -> str:
    """Return the arguments of a tool call as JSON text, converting an object to text.

    Raises:
        ValueError: the arguments are not valid UTF-8 or JSON.
    """
    data = bytes(raw)
    if not data or data == b"null":
        return ""
    return _strings.decode(data) if data.startswith(b'"') else data.decode()


def parse_object(text: str) -> Raw | None:
    """Return the text as raw JSON if it is one complete JSON object, else None."""
    try:
        parsed = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    return Raw(text.encode()) if isinstance(parsed, dict) else None


def _part_text(part: Raw) -> str:
    try:
        return _text_parts.decode(part).text
    except ValueError:
        return ""
