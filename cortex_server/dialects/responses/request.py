"""OpenAI's POST /v1/responses, read, and said again as a chat request.

Stateless: nothing is stored, so what refers to an earlier response is refused. Source: the Responses API
as typed in the openai SDK, and the requests that Codex was seen to send.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.anthropic.request import Translated
from cortex_server.dialects.chat import ChatRequest, JsonSchema, ResponseFormat, StreamOptions
from cortex_server.dialects.conversation import Conversation
from cortex_server.dialects.engine_options import Thoughts, apply_thoughts
from cortex_server.dialects.json_input import read_body
from cortex_server.dialects.responses.items import InputItems
from cortex_server.dialects.responses.tools import FlatTools, choose

T = TypeVar("T")


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
    """The body of POST /v1/responses. What is not named here means nothing to a local engine."""

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


def read_request(body: bytes) -> ResponsesRequest:
    """Read a body of POST /v1/responses.

    Raises:
        BadRequest: the body is no such request, or needs state that is not kept here.
    """
    request = read_body(_requests, body)
    if not request.model:
        raise BadRequest("model: must not be empty", param="model")
    if not request.input:
        raise BadRequest("input: must not be empty", param="input")
    if request.max_output_tokens is not None and request.max_output_tokens <= 0:
        raise BadRequest("max_output_tokens: must be 1 or more", param="max_output_tokens")
    stateful = {
        "previous_response_id": request.previous_response_id is not None,
        "conversation": _given(request.conversation),
        "prompt": _given(request.prompt),
        "background": bool(request.background),
    }
    for name, given in stateful.items():
        if given:
            raise BadRequest(
                f"{name}: responses are not stored here, so nothing can refer to them",
                param=name,
                hints=("Send the whole conversation in input.",),
            )
    return request


def to_chat(
    request: ResponsesRequest, *, model: str, traits: EngineTraits, stream: bool
) -> Translated:
    """Say the request as an engine understands it.

    Args:
        request: from `read_request`.
        model: the name by which the engine knows the model.
        traits: what the engine understands.
        stream: whether to ask for a stream, which need not be what the client asked for.

    Raises:
        BadRequest: something in it can't be carried over; the message names it and its place.
    """
    dropped: list[str] = []
    tools = FlatTools(request.tools or [], dropped)
    talk = Conversation()
    talk.system(request.instructions or "")
    items = InputItems(talk, tools, traits, dropped)
    if isinstance(request.input, str):
        items.user_text(request.input)
    else:
        items.add(request.input)
    sent_tools, sent_choice = choose(request.tool_choice, tools, traits)
    no_parallel = bool(sent_tools) and request.parallel_tool_calls is False
    parallel = request.parallel_tool_calls if sent_tools and traits.parallel_tool_calls else None
    chat = ChatRequest(
        model=model,
        messages=talk.finish(),
        max_tokens=_set(request.max_output_tokens),
        temperature=_set(request.temperature),
        top_p=_set(request.top_p),
        tools=sent_tools or UNSET,
        tool_choice=sent_choice if sent_tools else UNSET,
        parallel_tool_calls=_set(parallel),
        response_format=_response_format(request),
        stream=True if stream else UNSET,
        stream_options=StreamOptions() if stream else UNSET,
    )
    effort = request.reasoning.effort if request.reasoning else None
    apply_thoughts(chat, Thoughts(effort=effort), traits)
    return Translated(
        body=msgspec.json.encode(chat),
        call_ids=frozenset(talk.call_ids),
        only_first_call=no_parallel and not traits.parallel_tool_calls,
        dropped=tuple(dropped),
        function_names=tools.namespaced,
    )


def _response_format(request: ResponsesRequest) -> ResponseFormat | UnsetType:
    wanted = request.text.format if request.text else None
    match wanted and wanted.type:
        case None | "text":
            return UNSET
        case "json_object":
            return ResponseFormat("json_object")
        case "json_schema":
            assert wanted is not None
            schema = JsonSchema(wanted.name, wanted.schema, _set(wanted.strict))
            return ResponseFormat("json_schema", schema)
        case kind:
            raise BadRequest(f"text.format.type: {kind!r} is not known", param="text.format.type")


def _given(raw: Raw) -> bool:
    return bytes(raw) not in {b"", b"null"}


def _set(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
