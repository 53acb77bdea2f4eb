"""Translation of the input items of the Responses API to chat messages."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import (
    FunctionCall,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    ToolCall,
    unset_if_none,
)
from cortex_server.dialects.conversation import Conversation, ToolOutput
from cortex_server.dialects.json_input import decode, object_type
from cortex_server.dialects.responses.compaction import decode_summary
from cortex_server.dialects.responses.files import FileInput, translate_file
from cortex_server.dialects.responses.tools import FlattenedTools


class MessageInput(Struct):
    """An item of type "message", or without a type."""

    role: str
    content: str | list[Raw] | None = None


class ToolCallInput(Struct):
    """An item of type "function_call", or "custom_tool_call", which has `input` instead of `arguments`."""

    call_id: str
    name: str
    arguments: str = ""
    namespace: str | None = None
    input: str = ""


class ToolOutputInput(Struct):
    """An item of type "function_call_output" or "custom_tool_call_output"."""

    call_id: str
    output: str | list[Raw] | None = None


class ReasoningInput(Struct):
    """An item of type "reasoning"; `content` can be null."""

    summary: list[Raw] | None = None
    content: list[Raw] | None = None


class PartInput(Struct):
    """A part of a message or of a tool output."""

    type: str = ""
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    detail: str | None = None


class CompactionInput(Struct):
    """An item of type "compaction"."""

    encrypted_content: str


_messages = msgspec.json.Decoder(MessageInput)
_tool_calls = msgspec.json.Decoder(ToolCallInput)
_tool_outputs = msgspec.json.Decoder(ToolOutputInput)
_reasoning = msgspec.json.Decoder(ReasoningInput)
_parts = msgspec.json.Decoder(PartInput)
_files = msgspec.json.Decoder(FileInput)
_compactions = msgspec.json.Decoder(CompactionInput)

_IGNORED_TYPES = {
    "additional_tools",
    "code_interpreter_call",
    "file_search_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
}
"""Items about tools that OpenAI ran: what they found is in the answer after them."""


class InputTranslator:
    """Adds input items to a conversation, merging adjacent items of one assistant turn or of one turn's tool outputs.

    Args:
        conversation: receives the messages.
        tools: the tools of the request.
        traits: the traits of the engine.
        dropped: receives the items that were left out, for the log.
    """

    def __init__(
        self,
        conversation: Conversation,
        tools: FlattenedTools,
        traits: EngineTraits,
        dropped: list[str],
    ) -> None:
        self._conversation = conversation
        self._tools = tools
        self._traits = traits
        self._dropped = dropped
        self._texts: list[str] = []
        self._reasoning_texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._outputs: list[ToolOutput] = []

    def add(self, items: Iterable[Raw], earlier: int = 0) -> None:
        """Add all items, in order.

        Args:
            items: of earlier turns and of the request.
            earlier: how many of them are of earlier turns.

        Raises:
            BadRequest: an item has no counterpart; the message names its position.
        """
        for position, item in enumerate(items, -earlier):
            path = f"input.{position}" if position >= 0 else "previous_response_id"
            self._add_item(object_type(item, path) or "message", item, path)
        self._flush_assistant_turn()
        self._flush_tool_outputs()

    def _add_item(self, item_type: str, item: Raw, path: str) -> None:
        match item_type:
            case "message":
                self._add_message(decode(_messages, item, path), path)
            case "function_call" | "custom_tool_call":
                self._flush_tool_outputs()
                self._calls.append(self._tool_call(item_type, decode(_tool_calls, item, path)))
            case "function_call_output" | "custom_tool_call_output":
                self._flush_assistant_turn()
                output = decode(_tool_outputs, item, path)
                self._outputs.append(_tool_output(output, f"{path}.output"))
            case "reasoning":
                self._flush_tool_outputs()
                self._add_reasoning(decode(_reasoning, item, path), path)
            case "compaction":
                content = decode(_compactions, item, path).encrypted_content
                self._add_summary(decode_summary(content, path))
            case _ if item_type in _IGNORED_TYPES:
                self._dropped.append(f"{path}: {item_type}")
            case _:
                raise BadRequest(
                    f"{path}: items of type {item_type!r} are not supported", param=path
                )

    def _add_message(self, message: MessageInput, path: str) -> None:
        parts = _translate_content(message.content, f"{path}.content")
        match message.role:
            case "assistant":
                self._flush_tool_outputs()
                self._texts.append("".join(_texts(parts)))
            case "user":
                self._flush_assistant_turn()
                self._flush_tool_outputs()
                self._conversation.add_user(parts)
            case "system" | "developer":
                self._flush_assistant_turn()
                self._flush_tool_outputs()
                self._conversation.add_system("\n\n".join(_texts(parts)))
            case role:
                raise BadRequest(f"{path}.role: {role!r} is not a role", param=f"{path}.role")

    def _add_summary(self, summary: str) -> None:
        self._flush_assistant_turn()
        self._flush_tool_outputs()
        self._conversation.add_user([TextPart(f"Summary of the conversation so far:\n\n{summary}")])

    def _tool_call(self, item_type: str, call: ToolCallInput) -> ToolCall:
        arguments = call.arguments
        if item_type == "custom_tool_call":
            arguments = msgspec.json.encode({"input": call.input}).decode()
        name = self._tools.flat_name(call.namespace, call.name)
        return ToolCall(call.call_id, FunctionCall(name, arguments or "{}"))

    def _add_reasoning(self, item: ReasoningInput, path: str) -> None:
        if self._traits.reasoning_content:
            parts = item.content or item.summary or []
            self._reasoning_texts += [decode(_parts, part, path).text for part in parts]

    def _flush_assistant_turn(self) -> None:
        if self._texts or self._reasoning_texts or self._calls:
            reasoning = "\n".join(text for text in self._reasoning_texts if text)
            self._conversation.add_assistant("".join(self._texts), reasoning, self._calls)
            self._texts, self._reasoning_texts, self._calls = [], [], []

    def _flush_tool_outputs(self) -> None:
        if self._outputs:
            self._conversation.add_tool_outputs(self._outputs)
            self._outputs = []


def _translate_content(content: str | list[Raw] | None, path: str) -> list[Part]:
    if isinstance(content, str):
        return [TextPart(content)] if content else []
    return [_translate_part(raw, f"{path}.{n}") for n, raw in enumerate(content or ())]


def _translate_part(raw: Raw, path: str) -> Part:
    part = decode(_parts, raw, path)
    match part.type:
        case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
            return TextPart(part.text)
        case "refusal":
            return TextPart(part.refusal)
        case "input_image" if part.image_url:
            return ImagePart(ImageUrl(part.image_url, unset_if_none(part.detail)))
        case "input_image":
            raise BadRequest(f"{path}: an image must be given as image_url", param=path)
        case "input_file":
            return translate_file(decode(_files, raw, path), path)
        case part_type:
            raise BadRequest(f"{path}: parts of type {part_type!r} are not supported", param=path)


def _tool_output(output: ToolOutputInput, path: str) -> ToolOutput:
    parts = _translate_content(output.output, path)
    images = [part for part in parts if isinstance(part, ImagePart)]
    text = "\n".join(_texts(parts)) or ("(image)" if images else "")
    return ToolOutput(output.call_id, text, images)


def _texts(parts: Iterable[Part]) -> list[str]:
    return [part.text for part in parts if isinstance(part, TextPart)]
