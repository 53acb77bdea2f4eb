"""Parsing of POST /v1/messages and its translation to a chat request.

Source: the Messages API as typed in the anthropic SDK. Other top-level fields (service_tier, context_management,
cache_control, ...) are not read and so not forwarded. They are not rejected either: on a 400, Claude Code drops one
field and retries, again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.anthropic import content
from cortex_server.dialects.anthropic.tools import (
    ToolChoiceInput,
    translate_tool,
    translate_tool_choice,
)
from cortex_server.dialects.chat import (
    ChatRequest,
    JsonSchema,
    Message,
    Part,
    ResponseFormat,
    StreamOptions,
    Tool,
    TranslatedRequest,
    unset_if_none,
)
from cortex_server.dialects.conversation import Conversation, ToolOutput
from cortex_server.dialects.engine_options import ThinkingOptions, apply_options
from cortex_server.dialects.json_input import decode, decode_body

_BILLING_HEADER = "x-anthropic-billing-header:"


class Turn(Struct):
    """An entry of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Raw]


class Metadata(Struct):
    """`metadata`; Claude Code sends JSON text with device and session ids as `user_id`."""

    user_id: str | None = None


class ThinkingConfig(Struct):
    """`thinking`."""

    type: str
    budget_tokens: int | None = None


class OutputFormat(Struct):
    """`output_config.format`, formerly `output_format`."""

    type: Literal["json_schema"]
    schema: Raw


class OutputConfig(Struct):
    """`output_config`."""

    effort: str | None = None
    format: OutputFormat | None = None


class MessagesRequest(Struct):
    """The body of POST /v1/messages and of POST /v1/messages/count_tokens."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    system: str | list[Raw] | None = None
    tools: list[Raw] | None = None
    tool_choice: ToolChoiceInput | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    stream: bool | None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the client asked for thinking blocks."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def user(self) -> str | None:
        """The user id: a key for sending the turns of a conversation to the same instance."""
        return self.metadata.user_id if self.metadata else None


class _ToolChange(Struct):
    type: str
    name: str = ""
    definition: Raw | UnsetType = UNSET


class _ToolChangeBlock(Struct):
    tool: _ToolChange


_requests = msgspec.json.Decoder(MessagesRequest)
_tool_changes = msgspec.json.Decoder(_ToolChangeBlock)


def parse_request(body: bytes) -> MessagesRequest:
    """Parse the body of POST /v1/messages or POST /v1/messages/count_tokens.

    Raises:
        BadRequest: the body is not a valid request; the message names the field.
    """
    request = decode_body(_requests, body)
    if not request.model:
        raise BadRequest("model: must not be empty", param="model")
    if request.max_tokens is not None and request.max_tokens <= 0:
        raise BadRequest("max_tokens: must be 1 or more", param="max_tokens")
    if not request.messages:
        raise BadRequest("messages: at least one message is required", param="messages")
    return request


def to_chat(
    request: MessagesRequest, *, model: str, traits: EngineTraits, stream: bool
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
    tools = list(_tools(request, dropped))
    conversation = Conversation()
    conversation.add_system("\n\n".join(_system_texts(request.system)))
    for position, turn in enumerate(request.messages):
        path = f"messages.{position}.content"
        match turn.role:
            case "user":
                _add_user_turn(conversation, turn, path, dropped)
            case "assistant":
                _add_assistant_turn(conversation, turn, path, traits, dropped)
            case "system":
                _add_system_turn(conversation, turn, path, tools)
    choice = request.tool_choice
    no_parallel = bool(tools and choice is not None and choice.disable_parallel_tool_use)
    chat_tools, chat_choice = translate_tool_choice(choice, tools, traits)
    messages = conversation.finish()
    if not messages:
        raise BadRequest("messages: all messages are empty", param="messages")
    chat = ChatRequest(
        model=model,
        messages=messages,
        max_tokens=unset_if_none(request.max_tokens),
        temperature=unset_if_none(request.temperature),
        top_p=unset_if_none(request.top_p),
        top_k=unset_if_none(request.top_k),
        stop=request.stop_sequences or UNSET,
        tools=chat_tools or UNSET,
        tool_choice=chat_choice,
        parallel_tool_calls=False if no_parallel and traits.parallel_tool_calls else UNSET,
        response_format=_response_format(request),
        stream=True if stream else UNSET,
        stream_options=StreamOptions() if stream else UNSET,
    )
    dropped += apply_options(chat, _thinking_options(request), traits)
    if traits.continue_final_message and _is_prefill(messages[-1]):
        chat.continue_final_message = True
        chat.add_generation_prompt = False
    return TranslatedRequest(
        body=msgspec.json.encode(chat),
        call_ids=frozenset(conversation.call_ids),
        only_first_call=no_parallel and not traits.parallel_tool_calls,
        dropped=tuple(dropped),
    )


def _is_prefill(last: Message) -> bool:
    """Return whether the last message is the start of a response that the model is to continue."""
    return last.role == "assistant" and bool(last.content) and last.tool_calls is UNSET


def _add_user_turn(conversation: Conversation, turn: Turn, path: str, dropped: list[str]) -> None:
    outputs: list[ToolOutput] = []
    parts: list[Part] = []
    for block_type, block, block_path in content.blocks(turn.content, path):
        if block_type == "tool_result":
            outputs.append(content.tool_output(block, block_path))
        elif content.is_server_tool_block(block_type):
            dropped.append(f"{block_path}: {block_type}")
        else:
            parts.append(content.user_part(block_type, block, block_path))
    conversation.add_tool_outputs(outputs)
    conversation.add_user(parts)


def _add_assistant_turn(
    conversation: Conversation, turn: Turn, path: str, traits: EngineTraits, dropped: list[str]
) -> None:
    texts: list[str] = []
    thinking: list[str] = []
    calls = []
    for block_type, block, block_path in content.blocks(turn.content, path):
        match block_type:
            case "text":
                texts.append(content.text(block, block_path))
            case "thinking":
                thinking.append(content.thinking(block, block_path))
            case "tool_use":
                calls.append(content.tool_call(block, block_path))
            case "redacted_thinking" | "compaction":
                dropped.append(f"{block_path}: {block_type}")
            case _ if content.is_server_tool_block(block_type):
                dropped.append(f"{block_path}: {block_type}")
            case _:
                raise content.unsupported_block(block_type, block_path)
    reasoning = "".join(thinking) if traits.reasoning_content else ""
    conversation.add_assistant("".join(texts), reasoning, calls)


def _add_system_turn(conversation: Conversation, turn: Turn, path: str, tools: list[Tool]) -> None:
    texts: list[str] = []
    for block_type, block, block_path in content.blocks(turn.content, path):
        match block_type:
            case "text":
                texts.append(content.text(block, block_path))
            case "tool_addition":
                _add_tool(
                    decode(_tool_changes, block, block_path).tool, f"{block_path}.tool", tools
                )
            case "tool_removal":
                removed = decode(_tool_changes, block, block_path).tool.name
                tools[:] = [tool for tool in tools if tool.function.name != removed]
            case _:
                raise content.unsupported_block(block_type, block_path)
    conversation.add_system("\n\n".join(texts))


def _add_tool(change: _ToolChange, path: str, tools: list[Tool]) -> None:
    """Add a tool that is defined in the block; one that is only named is already in `tools`."""
    if change.definition is UNSET:
        return
    added = translate_tool(change.definition, f"{path}.definition")
    if isinstance(added, Tool):
        tools[:] = [tool for tool in tools if tool.function.name != added.function.name]
        tools.append(added)


def _system_texts(system: str | list[Raw] | None) -> Iterator[str]:
    """Yield the texts of the system prompt, except Claude Code's billing header.

    The header comes first and differs between requests, so with it an engine's prefix cache would never hit.
    """
    for block_type, block, path in content.blocks(system, "system"):
        if block_type != "text":
            raise content.unsupported_block(block_type, path)
        text = content.text(block, path)
        if not text.startswith(_BILLING_HEADER):
            yield text


def _tools(request: MessagesRequest, dropped: list[str]) -> Iterable[Tool]:
    for position, raw in enumerate(request.tools or ()):
        translated = translate_tool(raw, f"tools.{position}")
        if isinstance(translated, Tool):
            yield translated
        else:
            dropped.append(f"tools.{position}: {translated} runs only at Anthropic")


def _response_format(request: MessagesRequest) -> ResponseFormat | UnsetType:
    config = request.output_config
    output_format = (config and config.format) or request.output_format
    if output_format is None:
        return UNSET
    return ResponseFormat("json_schema", JsonSchema("answer", output_format.schema))


def _thinking_options(request: MessagesRequest) -> ThinkingOptions:
    effort = request.output_config.effort if request.output_config else None
    config = request.thinking
    if config is None or config.type not in {"enabled", "disabled"}:
        # For "adaptive", the model decides whether to think; only the effort is passed on.
        return ThinkingOptions(effort=effort)
    return ThinkingOptions(
        enabled=config.type == "enabled", budget_tokens=config.budget_tokens, effort=effort
    )
