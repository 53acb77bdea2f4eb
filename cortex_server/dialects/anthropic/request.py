"""Anthropic's POST /v1/messages, read, and said again as a chat request.

Source: the Messages API as typed in the anthropic SDK. Top-level fields that are not named here (service_tier,
metadata beyond the user, context_management, cache_control, ...) are not read and so not forwarded:
clients repeat a refused request with one field less each time, which helps nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.anthropic import content as block_of
from cortex_server.dialects.anthropic.tools import AnthropicChoice, choose, tool
from cortex_server.dialects.chat import (
    ChatRequest,
    ImagePart,
    JsonSchema,
    Message,
    Part,
    ResponseFormat,
    StreamOptions,
    Tool,
)
from cortex_server.dialects.conversation import Conversation
from cortex_server.dialects.engine_options import Thoughts, apply_thoughts
from cortex_server.dialects.json_input import read, read_body


@dataclass(frozen=True, slots=True)
class Translated:
    """A client's request in the words of an engine.

    Attributes:
        body: of POST /v1/chat/completions.
        call_ids: ids of the calls of earlier turns, which the answer must not use again.
        only_first_call: the client wants no parallel calls and the engine has no switch for it.
        dropped: what could not be carried over and was left out, each for one line of the log.
        function_names: how flattened names of functions map back to (namespace, name).
    """

    body: bytes
    call_ids: frozenset[str] = frozenset()
    only_first_call: bool = False
    dropped: tuple[str, ...] = ()
    function_names: dict[str, tuple[str, str]] = field(default_factory=dict)


T = TypeVar("T")

_BILLING_HEADER = "x-anthropic-billing-header:"


class Turn(Struct):
    """One entry of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Raw]


class Metadata(Struct):
    """`metadata`; Claude Code puts JSON text with device and session ids into `user_id`."""

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
    """The body of POST /v1/messages and of its count_tokens."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    system: str | list[Raw] | None = None
    tools: list[Raw] | None = None
    tool_choice: AnthropicChoice | None = None
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
    def user(self) -> str | None:
        """Who asks: a key for sending the turns of one conversation to the same instance."""
        return self.metadata.user_id if self.metadata else None


class _ToolChange(Struct):
    type: str
    name: str = ""
    definition: Raw | UnsetType = UNSET


class _ToolChangeBlock(Struct):
    tool: _ToolChange


_requests = msgspec.json.Decoder(MessagesRequest)
_tool_changes = msgspec.json.Decoder(_ToolChangeBlock)


def read_request(body: bytes) -> MessagesRequest:
    """Read a body of POST /v1/messages or /v1/messages/count_tokens.

    Raises:
        BadRequest: the body is no such request; the message names the field.
    """
    request = read_body(_requests, body)
    if not request.model:
        raise BadRequest("model: must not be empty", param="model")
    if request.max_tokens is not None and request.max_tokens <= 0:
        raise BadRequest("max_tokens: must be 1 or more", param="max_tokens")
    if not request.messages:
        raise BadRequest("messages: at least one message is required", param="messages")
    return request


def to_chat(
    request: MessagesRequest, *, model: str, traits: EngineTraits, stream: bool
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
    tools = list(_tools(request, dropped))
    talk = Conversation()
    talk.system("\n\n".join(_system_texts(request.system)))
    for position, turn in enumerate(request.messages):
        _turn(talk, turn, f"messages.{position}.content", traits, tools, dropped)
    choice = request.tool_choice
    no_parallel = bool(tools and choice is not None and choice.disable_parallel_tool_use)
    sent_tools, sent_choice = choose(choice, tools, traits)
    messages = talk.finish()
    if not messages:
        raise BadRequest("messages: all of them are empty", param="messages")
    chat = ChatRequest(
        model=model,
        messages=messages,
        max_tokens=_set(request.max_tokens),
        temperature=_set(request.temperature),
        top_p=_set(request.top_p),
        top_k=_set(request.top_k),
        stop=request.stop_sequences or UNSET,
        tools=sent_tools or UNSET,
        tool_choice=sent_choice,
        parallel_tool_calls=False if no_parallel and traits.parallel_tool_calls else UNSET,
        response_format=_response_format(request),
        stream=True if stream else UNSET,
        stream_options=StreamOptions() if stream else UNSET,
    )
    apply_thoughts(chat, _thoughts(request), traits)
    if traits.continue_final_message and _is_begun(messages[-1]):
        chat.continue_final_message = True
        chat.add_generation_prompt = False
    return Translated(
        body=msgspec.json.encode(chat),
        call_ids=frozenset(talk.call_ids),
        only_first_call=no_parallel and not traits.parallel_tool_calls,
        dropped=tuple(dropped),
    )


def _is_begun(last: Message) -> bool:
    """Whether it is an answer that the client began and the model is to go on with."""
    return last.role == "assistant" and bool(last.content) and last.tool_calls is UNSET


def _turn(
    talk: Conversation,
    turn: Turn,
    where: str,
    traits: EngineTraits,
    tools: list[Tool],
    dropped: list[str],
) -> None:
    match turn.role:
        case "user":
            _user_turn(talk, turn, where, dropped)
        case "assistant":
            _assistant_turn(talk, turn, where, traits, dropped)
        case "system":
            _system_turn(talk, turn, where, tools)


def _user_turn(talk: Conversation, turn: Turn, where: str, dropped: list[str]) -> None:
    results: list[tuple[str, str, list[ImagePart]]] = []
    parts: list[Part] = []
    for kind, block, place in block_of.blocks(turn.content, where):
        if kind == "tool_result":
            results.append(block_of.tool_result(block, place))
        elif block_of.is_server_run(kind):
            dropped.append(f"{place}: {kind}")
        else:
            parts.append(block_of.user_part(kind, block, place))
    talk.results(results)
    talk.user(parts)


def _assistant_turn(
    talk: Conversation, turn: Turn, where: str, traits: EngineTraits, dropped: list[str]
) -> None:
    texts: list[str] = []
    thoughts: list[str] = []
    calls = []
    for kind, block, place in block_of.blocks(turn.content, where):
        match kind:
            case "text":
                texts.append(block_of.text(block, place))
            case "thinking":
                thoughts.append(block_of.thinking(block, place))
            case "tool_use":
                calls.append(block_of.tool_call(block, place))
            case "redacted_thinking" | "compaction":
                dropped.append(f"{place}: {kind}")
            case _ if block_of.is_server_run(kind):
                dropped.append(f"{place}: {kind}")
            case _:
                raise block_of.refuse(kind, place)
    reasoning = "".join(thoughts) if traits.reasoning_content else ""
    talk.assistant("".join(texts), reasoning, calls)


def _system_turn(talk: Conversation, turn: Turn, where: str, tools: list[Tool]) -> None:
    texts: list[str] = []
    for kind, block, place in block_of.blocks(turn.content, where):
        match kind:
            case "text":
                texts.append(block_of.text(block, place))
            case "tool_addition":
                _add_tool(read(_tool_changes, block, place).tool, f"{place}.tool", tools)
            case "tool_removal":
                gone = read(_tool_changes, block, place).tool.name
                tools[:] = [kept for kept in tools if kept.function.name != gone]
            case _:
                raise block_of.refuse(kind, place)
    talk.system("\n\n".join(texts))


def _add_tool(change: _ToolChange, where: str, tools: list[Tool]) -> None:
    """Offer a tool that is defined here; one that is only named stands in `tools` already."""
    if change.definition is UNSET:
        return
    added = tool(change.definition, f"{where}.definition")
    if isinstance(added, Tool):
        tools[:] = [kept for kept in tools if kept.function.name != added.function.name]
        tools.append(added)


def _system_texts(system: str | list[Raw] | None) -> Iterator[str]:
    """The system prompt without the block that differs in each request.

    Claude Code's billing header stands first, so with it no engine's prefix cache would ever hit.
    """
    for kind, block, place in block_of.blocks(system, "system"):
        if kind != "text":
            raise block_of.refuse(kind, place)
        text = block_of.text(block, place)
        if not text.startswith(_BILLING_HEADER):
            yield text


def _tools(request: MessagesRequest, dropped: list[str]) -> Iterable[Tool]:
    for position, raw in enumerate(request.tools or ()):
        found = tool(raw, f"tools.{position}")
        if isinstance(found, Tool):
            yield found
        else:
            dropped.append(f"tools.{position}: {found} runs on Anthropic's side only")


def _response_format(request: MessagesRequest) -> ResponseFormat | UnsetType:
    config = request.output_config
    wanted = (config and config.format) or request.output_format
    if wanted is None:
        return UNSET
    return ResponseFormat("json_schema", JsonSchema("answer", wanted.schema))


def _thoughts(request: MessagesRequest) -> Thoughts:
    effort = request.output_config.effort if request.output_config else None
    config = request.thinking
    if config is None or config.type not in {"enabled", "disabled"}:
        return Thoughts(effort=effort)  # adaptive: the model decides, the effort says how much
    return Thoughts(
        wanted=config.type == "enabled", budget_tokens=config.budget_tokens, effort=effort
    )


def _set(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
