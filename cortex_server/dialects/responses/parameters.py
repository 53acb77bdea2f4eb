"""The parameters of POST /v1/responses.

A parameter that is unknown, or that asks for something that the gateway can't do, is rejected by its name. The others
are obeyed, or are hints without an effect on the answer.

Sources: the OpenAPI document of Open Responses (2026-04-24), the Responses API as typed in the openai SDK, and requests
captured from Codex.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_server.dialects.json_input import decode_body

_SUMMARIES = Literal["auto", "concise", "detailed"]

_LOGPROBS = "message.output_text.logprobs"

_INCLUDABLE = {
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
}
"""Values of `include`. Their tools are rejected elsewhere, and reasoning is never withheld, so they have no effect."""

_CHAT_HINT = ("POST /v1/chat/completions supports it.",)

_UNSUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "access_programs": ("not supported", ()),
    "background": (
        "responses are not computed in the background",
        ("Keep the connection open. With stream set to true, it does not time out.",),
    ),
    "background_options": ("not supported", ()),
    "context_management": ("not supported", ("Use POST /v1/responses/compact.",)),
    "conversation": (
        "conversations are not stored",
        ("Use previous_response_id, or send all items in input.",),
    ),
    "image": ("not supported", ()),
    "moderation": ("not supported", ()),
    "prompt": ("prompt templates are not stored", ("Send the text in instructions or input.",)),
    "top_logprobs": ("not supported", _CHAT_HINT),
}
"""Parameters that are rejected unless they ask for nothing: why, and hints."""


class Reasoning(Struct, forbid_unknown_fields=True):
    """`reasoning`."""

    effort: str | None = None
    summary: _SUMMARIES | None = None
    generate_summary: _SUMMARIES | None = None
    context: str | None = None
    mode: str | None = None


class TextFormat(Struct, forbid_unknown_fields=True):
    """`text.format`."""

    type: str
    name: str = "answer"
    description: str | None = None
    schema: Raw = Raw(b"{}")
    strict: bool | None = None


class TextConfig(Struct, forbid_unknown_fields=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Struct, forbid_unknown_fields=True):
    """The body of POST /v1/responses, and of the routes that take a part of it."""

    model: str
    input: str | list[Raw] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Raw] | None = None
    tool_choice: Raw = Raw()
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None
    include: list[str] | None = None
    # Hints to OpenAI's servers.
    prompt_cache_retention: Raw = Raw()
    prompt_cache_options: Raw = Raw()
    client_metadata: Raw = Raw()
    # Rejected unless they ask for nothing.
    top_logprobs: int | None = None
    background: bool | None = None
    background_options: Raw = Raw()
    context_management: Raw = Raw()
    conversation: Raw = Raw()
    prompt: Raw = Raw()
    moderation: Raw = Raw()
    access_programs: Raw = Raw()
    image: Raw = Raw()


_requests = msgspec.json.Decoder(ResponsesRequest)


def parse_request(body: bytes) -> ResponsesRequest:
    """Parse the body of POST /v1/responses.

    Raises:
        BadRequest: the body is not a valid request; the message names the parameter.
    """
    request = decode_body(_requests, body)
    if not request.model:
        raise BadRequest("model: must not be empty", param="model")
    if not request.input and request.previous_response_id is None:
        raise BadRequest("input: must not be empty", param="input")
    if request.max_output_tokens is not None and request.max_output_tokens <= 0:
        raise BadRequest("max_output_tokens: must be 1 or more", param="max_output_tokens")
    _reject_unsupported(request)
    return request


def _reject_unsupported(request: ResponsesRequest) -> None:
    _check_include(request.include or ())
    for name, (reason, hints) in _UNSUPPORTED.items():
        value = getattr(request, name)
        if _asks_for_something(value) if isinstance(value, Raw) else value:
            raise BadRequest(f"{name}: {reason}", param=name, hints=hints)


def _check_include(values: Iterable[str]) -> None:
    for value in values:
        if value == _LOGPROBS:
            raise BadRequest(
                f"include: {value} is not supported", param="include", hints=_CHAT_HINT
            )
        if value not in _INCLUDABLE:
            raise BadRequest(f"include: unknown value {value!r}", param="include")


def _asks_for_something(raw: Raw) -> bool:
    return bytes(raw) not in {b"", b"null", b"[]", b"{}"}
