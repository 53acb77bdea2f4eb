"""Parsing of POST /v1/responses and its translation to a chat request.

Stateless: responses are not stored, so a reference to an earlier one is rejected. Source: the Responses API as typed in
the openai SDK, and requests captured from Codex.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import (
    ChatRequest,
    JsonSchema,
    ResponseFormat,
    StreamOptions,
    TextPart,
    TranslatedRequest,
    unset_if_none,
)
from cortex_server.dialects.conversation import Conversation
from cortex_server.dialects.engine_options import ThinkingOptions, apply_thinking
from cortex_server.dialects.json_input import decode_body
from cortex_server.dialects.responses.items import InputTranslator
from cortex_server.dialects.responses.tools import FlattenedTools, translate_tool_choice


class Reasoning(Struct):
    """`reasoning`."""

    effort: str | None = None


class TextFormat(Struct):
    """`text.format`."""

    type: str
    name: str = "answer"
    schema: Raw = Raw(b"{}")
    strict: bool | None = None


class TextConfig(Struct):
    """`text`."""

    format: TextFormat | None = None


class ResponsesRequest(Struct):
    """The body of POST /v1/responses; other fields mean nothing to local engines."""

    model: str
    input: str | list[Raw] = ""
    instructions: str | None = None
    tools: list[Raw] | None = None
    tool_choice: Raw = Raw()
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Raw = Raw()
    prompt: Raw = Raw()
    prompt_cache_key: str | None = None


_requests = msgspec.json.Decoder(ResponsesRequest)


def parse_request(body: bytes) -> ResponsesRequest:
    """Parse the body of POST /v1/responses.

    Raises:
        BadRequest: the body is not a valid request, or refers to stored state.
    """
    request = decode_body(_requests, body)
    if not request.model:
        raise BadRequest("model: must not be empty", param="model")
    if not request.input:
        raise BadRequest("input: must not be empty", param="input")
    if request.max_output_tokens is not None and request.max_output_tokens <= 0:
        raise BadRequest("max_output_tokens: must be 1 or more", param="max_output_tokens")
    stateful_fields = {
        "previous_response_id": request.previous_response_id is not None,
        "conversation": _is_set(request.conversation),
        "prompt": _is_set(request.prompt),
        "background": bool(request.background),
    }
    for name, is_set in stateful_fields.items():
        if is_set:
            raise BadRequest(
                f"{name}: not supported, because responses are not stored",
                param=name,
                hints=("Send the whole conversation in input.",),
            )
    return request


def to_chat(
    request: ResponsesRequest, *, model: str, traits: EngineTraits, stream: bool
) -> TranslatedRequest:
    """Translate a request to a chat request.

    Args:
        request: the client's request.
        model: the engine's name of the model.
        traits: the traits of the engine.
        stream: whether to ask the engine for a stream, which can differ from what the client asked for.

    Raises:
        BadRequest: part of the request has no counterpart; the message names it.
    """
    dropped: list[str] = []
    tools = FlattenedTools(request.tools or [], dropped)
    conversation = Conversation()
    conversation.add_system(request.instructions or "")
    if isinstance(request.input, str):
        conversation.add_user([TextPart(request.input)])
    else:
        InputTranslator(conversation, tools, traits, dropped).add(request.input)
    chat_tools, chat_choice = translate_tool_choice(request.tool_choice, tools, traits)
    no_parallel = bool(chat_tools) and request.parallel_tool_calls is False
    parallel = request.parallel_tool_calls if chat_tools and traits.parallel_tool_calls else None
    chat = ChatRequest(
        model=model,
        messages=conversation.finish(),
        max_tokens=unset_if_none(request.max_output_tokens),
        temperature=unset_if_none(request.temperature),
        top_p=unset_if_none(request.top_p),
        tools=chat_tools or UNSET,
        tool_choice=chat_choice if chat_tools else UNSET,
        parallel_tool_calls=unset_if_none(parallel),
        response_format=_response_format(request),
        stream=True if stream else UNSET,
        stream_options=StreamOptions() if stream else UNSET,
    )
    effort = request.reasoning.effort if request.reasoning else None
    apply_thinking(chat, ThinkingOptions(effort=effort), traits)
    return TranslatedRequest(
        body=msgspec.json.encode(chat),
        call_ids=frozenset(conversation.call_ids),
        only_first_call=no_parallel and not traits.parallel_tool_calls,
        dropped=tuple(dropped),
        function_names=tools.names,
    )


def _response_format(request: ResponsesRequest) -> ResponseFormat | UnsetType:
    text_format = request.text.format if request.text else None
    match text_format and text_format.type:
        case None | "text":
            return UNSET
        case "json_object":
            return ResponseFormat("json_object")
        case "json_schema":
            assert text_format is not None
            strict = unset_if_none(text_format.strict)
            schema = JsonSchema(text_format.name, text_format.schema, strict)
            return ResponseFormat("json_schema", schema)
        case unknown:
            raise BadRequest(
                f"text.format.type: unknown type {unknown!r}", param="text.format.type"
            )


def _is_set(raw: Raw) -> bool:
    return bytes(raw) not in {b"", b"null"}
