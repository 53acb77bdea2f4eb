"""The wire of OpenAI chat completions: what we send to engines, and what they answer.

What is sent is strict. What is read is lenient: every field may be missing or null, unknown ones
are skipped, and the arguments of a call stay raw because some engines send an object for a string.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

# --- sent ---------------------------------------------------------------------------------------


class ImageUrl(Struct, frozen=True):
    """Where an image is: a URL, or a data URL that carries it."""

    url: str


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text in a user message."""

    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image in a user message."""

    image_url: ImageUrl


Part = TextPart | ImagePart


class CalledFunction(Struct, frozen=True):
    """What a call calls; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """A finished call in an assistant message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Part]
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class Function(Struct, frozen=True):
    """A function that the model may call; `parameters` is its JSON schema, verbatim."""

    name: str
    parameters: Raw
    description: str | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class Tool(Struct, frozen=True):
    """An entry of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    """The name inside a `ToolChoice`."""

    name: str


class ToolChoice(Struct, frozen=True):
    """The tool choice that names a function."""

    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(Struct, frozen=True):
    """The schema that an answer must follow."""

    name: str
    schema: Raw
    strict: bool | UnsetType = UNSET


class ResponseFormat(Struct, frozen=True):
    """`response_format`."""

    type: Literal["json_schema", "json_object"]
    json_schema: JsonSchema | UnsetType = UNSET


class StreamOptions(Struct, frozen=True):
    """`stream_options`: we always ask for usage."""

    include_usage: bool = True


class ChatRequest(Struct):
    """The body of POST /v1/chat/completions; fields that are UNSET are not sent."""

    model: str
    messages: list[Message]
    max_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
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


# --- read ---------------------------------------------------------------------------------------


_MOST_TOKENS = 1 << 40


class PromptDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int | None = None


def _bounded(tokens: int | None) -> int:
    return min(max(tokens or 0, 0), _MOST_TOKENS)


class Usage(Struct):
    """Tokens of a request as the engine counted them; the answer's include its reasoning."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, cached ones included."""
        return self.prompt_tokens or 0

    @property
    def completion(self) -> int:
        """Tokens of the answer."""
        return self.completion_tokens or 0

    @property
    def cached(self) -> int:
        """Tokens of the prompt that came from the engine's cache."""
        details = self.prompt_tokens_details
        return min((details.cached_tokens or 0) if details else 0, self.prompt)

    @property
    def counted(self) -> tuple[int, int, int]:
        """`prompt`, `completion` and `cached` at once: each request asks for them.

        Within bounds: no counter may fall, and one too large would be refused by SQLite with all that came along.
        """
        prompt, details = _bounded(self.prompt_tokens), self.prompt_tokens_details
        cached = min(_bounded(details.cached_tokens), prompt) if details is not None else 0
        return prompt, _bounded(self.completion_tokens), cached

    @property
    def reasoning(self) -> int:
        """Tokens of the answer that were reasoning, where the engine tells."""
        details = self.completion_tokens_details
        return (details.reasoning_tokens or 0) if details else 0


class FunctionPiece(Struct):
    """A part of a call, or the whole of it."""

    name: str | None = None
    arguments: Raw = Raw()


class CallPiece(Struct):
    """One entry of `tool_calls`, in a delta or in a finished message."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Said(Struct):
    """A delta, or a finished message; they share their fields."""

    content: str | list[Raw] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None

    @property
    def thought(self) -> str | None:
        """The reasoning, under whichever of its two names it came."""
        return self.reasoning_content or self.reasoning

    @property
    def text(self) -> str | None:
        """The content; parts of text are joined."""
        if not isinstance(self.content, list):
            return self.content
        return "".join(_part_text(part) for part in self.content)


class Choice(Struct):
    """One choice, of a chunk (`delta`) or of a finished answer (`message`)."""

    index: int | None = None
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    stopping_word: str | None = None

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that was met, where the engine tells; a number is a token and tells nothing."""
        told = self.stop_reason if isinstance(self.stop_reason, str) else self.stopping_word
        return told or None


class Answer(Struct):
    """A chunk of a stream, a finished answer, or an error in the place of either."""

    id: str | int | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Raw = Raw()


class _TextOnly(Struct):
    text: str = ""


_answers = msgspec.json.Decoder(Answer)
_texts = msgspec.json.Decoder(_TextOnly)
_strings = msgspec.json.Decoder(str)


def read_answer(data: bytes) -> Answer | None:
    """A chunk or an answer of an engine; None when it is no such JSON."""
    try:
        return _answers.decode(data)
    except (ValueError, RecursionError):
        return None


def arguments_text(raw: Raw) -> str:
    """A call's arguments as the JSON text that OpenAI means them to be; an object becomes its text."""
    data = bytes(raw)
    if not data or data == b"null":
        return ""
    return _strings.decode(data) if data.startswith(b'"') else data.decode()


def object_or_none(text: str) -> Raw | None:
    """The text as raw JSON if it is one whole JSON object."""
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    return Raw(text.encode()) if isinstance(found, dict) else None


def _part_text(part: Raw) -> str:
    try:
        return _texts.decode(part).text
    except ValueError:
        return ""
