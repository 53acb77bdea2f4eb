"""The input items of the Responses API as messages."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_common.schema.engine_traits import EngineTraits
from cortex_server.dialects.chat import (
    CalledFunction,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    ToolCall,
)
from cortex_server.dialects.conversation import Conversation
from cortex_server.dialects.json_input import read, type_of
from cortex_server.dialects.responses.tools import FlatTools


class MessageInput(Struct):
    """{"type": "message"}; the type may be missing."""

    role: str
    content: str | list[Raw] | None = None


class CallInput(Struct):
    """{"type": "function_call"} and {"type": "custom_tool_call"}, the latter with `input`."""

    call_id: str
    name: str
    arguments: str = ""
    namespace: str | None = None
    input: str = ""


class OutputInput(Struct):
    """{"type": "function_call_output"} and the like."""

    call_id: str
    output: str | list[Raw] | None = None


class ReasoningInput(Struct):
    """{"type": "reasoning"}; `content` may be null."""

    summary: list[Raw] | None = None
    content: list[Raw] | None = None


class InputPart(Struct):
    """A part of a message or of an output."""

    type: str = ""
    text: str = ""
    refusal: str = ""
    image_url: str | None = None


_messages = msgspec.json.Decoder(MessageInput)
_calls = msgspec.json.Decoder(CallInput)
_outputs = msgspec.json.Decoder(OutputInput)
_reasonings = msgspec.json.Decoder(ReasoningInput)
_parts = msgspec.json.Decoder(InputPart)


class InputItems:
    """Adds items to a conversation; neighbours of one assistant turn, and of one turn's results, are gathered."""

    def __init__(
        self, talk: Conversation, tools: FlatTools, traits: EngineTraits, dropped: list[str]
    ) -> None:
        self._talk = talk
        self._tools = tools
        self._traits = traits
        self._dropped = dropped
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._turn_calls: list[ToolCall] = []
        self._results: list[tuple[str, str, list[ImagePart]]] = []

    def user_text(self, text: str) -> None:
        """An input that is a plain string."""
        self._talk.user([TextPart(text)])

    def add(self, items: Iterable[Raw]) -> None:
        """All items, in order.

        Raises:
            BadRequest: an item has no counterpart; its position is named.
        """
        for position, item in enumerate(items):
            where = f"input.{position}"
            self._item(type_of(item, where) or "message", item, where)
        self._flush_assistant()
        self._flush_results()

    def _item(self, kind: str, item: Raw, where: str) -> None:
        match kind:
            case "message":
                self._message(read(_messages, item, where), where)
            case "function_call" | "custom_tool_call":
                self._flush_results()
                self._turn_calls.append(self._call(kind, read(_calls, item, where)))
            case "function_call_output" | "custom_tool_call_output":
                self._flush_assistant()
                output = read(_outputs, item, where)
                self._results.append(_result(output, f"{where}.output"))
            case "reasoning":
                self._flush_results()
                self._think(read(_reasonings, item, where), where)
            case "item_reference":
                raise BadRequest(
                    f"{where}: responses are not stored here, so nothing can refer to them",
                    param=where,
                    hints=["Ask with store false: clients send whole items then."],
                )
            case _ if kind.endswith(("_call", "_call_output", "_list_tools")) or kind in _SILENT:
                self._dropped.append(f"{where}: {kind}")
            case _:
                raise BadRequest(
                    f"{where}: items of type {kind!r} are not supported here", param=where
                )

    def _message(self, message: MessageInput, where: str) -> None:
        parts = _content(message.content, f"{where}.content")
        match message.role:
            case "assistant":
                self._flush_results()
                self._texts.append(_text(parts))
            case "user":
                self._flush_assistant()
                self._flush_results()
                self._talk.user(parts)
            case "system" | "developer":
                self._flush_assistant()
                self._flush_results()
                self._talk.system("\n\n".join(_texts(parts)))
            case role:
                raise BadRequest(f"{where}.role: {role!r} is not a role", param=f"{where}.role")

    def _call(self, kind: str, call: CallInput) -> ToolCall:
        arguments = call.arguments
        if kind == "custom_tool_call":
            arguments = msgspec.json.encode({"input": call.input}).decode()
        name = self._tools.flat_name(call.namespace, call.name)
        return ToolCall(call.call_id, CalledFunction(name, arguments or "{}"))

    def _think(self, item: ReasoningInput, where: str) -> None:
        if self._traits.reasoning_content:
            parts = item.content or item.summary or []
            self._thoughts += [read(_parts, part, where).text for part in parts]

    def _flush_assistant(self) -> None:
        if self._texts or self._thoughts or self._turn_calls:
            reasoning = "\n".join(text for text in self._thoughts if text)
            self._talk.assistant("".join(self._texts), reasoning, self._turn_calls)
            self._texts, self._thoughts, self._turn_calls = [], [], []

    def _flush_results(self) -> None:
        if self._results:
            self._talk.results(self._results)
            self._results = []


_SILENT = {"compaction", "mcp_approval_request", "mcp_approval_response", "additional_tools"}


def _content(content: str | list[Raw] | None, where: str) -> list[Part]:
    if isinstance(content, str):
        return [TextPart(content)] if content else []
    return [_part(raw, f"{where}.{position}") for position, raw in enumerate(content or ())]


def _part(raw: Raw, where: str) -> Part:
    part = read(_parts, raw, where)
    match part.type:
        case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
            return TextPart(part.text)
        case "refusal":
            return TextPart(part.refusal)
        case "input_image" if part.image_url:
            return ImagePart(ImageUrl(part.image_url))
        case "input_image":
            raise BadRequest(f"{where}: an image must come as image_url here", param=where)
        case kind:
            raise BadRequest(f"{where}: parts of type {kind!r} are not supported here", param=where)


def _result(output: OutputInput, where: str) -> tuple[str, str, list[ImagePart]]:
    parts = _content(output.output, where)
    images = [part for part in parts if isinstance(part, ImagePart)]
    return output.call_id, "\n".join(_texts(parts)) or ("(image)" if images else ""), images


def _texts(parts: Iterable[Part]) -> list[str]:
    return [part.text for part in parts if isinstance(part, TextPart)]


def _text(parts: Iterable[Part]) -> str:
    return "".join(_texts(parts))
