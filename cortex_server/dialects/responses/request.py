"""Translation of the request of POST /v1/responses to a chat request."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

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
from cortex_server.dialects.engine_options import ThinkingOptions, apply_options
from cortex_server.dialects.responses import compaction
from cortex_server.dialects.responses.history import Input
from cortex_server.dialects.responses.items import InputTranslator
from cortex_server.dialects.responses.parameters import ResponsesRequest
from cortex_server.dialects.responses.tools import FlattenedTools, translate_tool_choice


def to_chat(
    request: ResponsesRequest,
    items: Input,
    *,
    model: str,
    traits: EngineTraits,
    stream: bool,
    compact: bool = False,
) -> TranslatedRequest:
    """Translate a request to a chat request.

    Args:
        request: the client's request.
        items: its items, with what it refers to.
        model: the engine's name of the model.
        traits: the traits of the engine.
        stream: whether to ask the engine for a stream, which can differ from what the client asked for.
        compact: ask for a summary of the conversation instead of continuing it.

    Raises:
        BadRequest: part of the request has no counterpart; the message names it.
    """
    dropped: list[str] = []
    tools = FlattenedTools(request.tools or [], dropped)
    conversation = Conversation()
    conversation.add_system(request.instructions or "")
    translator = InputTranslator(conversation, tools, traits, dropped)
    translator.add([*items.earlier, *items.own], len(items.earlier))
    if compact:
        conversation.add_user([TextPart(compaction.PROMPT)])
    messages = conversation.finish()
    if not messages:
        raise BadRequest("input: all items are empty", param="input")
    chat_tools, chat_choice = translate_tool_choice(request.tool_choice, tools, traits)
    no_parallel = bool(chat_tools) and request.parallel_tool_calls is False
    parallel = request.parallel_tool_calls if chat_tools and traits.parallel_tool_calls else None
    chat = ChatRequest(
        model=model,
        messages=messages,
        max_tokens=unset_if_none(request.max_output_tokens),
        temperature=unset_if_none(request.temperature),
        top_p=unset_if_none(request.top_p),
        presence_penalty=unset_if_none(request.presence_penalty),
        frequency_penalty=unset_if_none(request.frequency_penalty),
        tools=chat_tools or UNSET,
        tool_choice=chat_choice if chat_tools else UNSET,
        parallel_tool_calls=unset_if_none(parallel),
        response_format=_response_format(request),
        stream=True if stream else UNSET,
        stream_options=StreamOptions() if stream else UNSET,
    )
    effort = request.reasoning.effort if request.reasoning else None
    dropped += apply_options(chat, ThinkingOptions(effort=effort), traits)
    return TranslatedRequest(
        body=msgspec.json.encode(chat),
        call_ids=frozenset(conversation.call_ids),
        only_first_call=no_parallel and not traits.parallel_tool_calls,
        dropped=tuple(dropped),
        tool_names=tools.names,
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
