"""Anthropic's content blocks, one by one, as parts of chat messages.

Source: the Messages API as typed in the anthropic SDK. A block that can't be carried over is refused by
its type and position, or, where leaving it out changes nothing that the model must know, dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_server.dialects.chat import CalledFunction, ImagePart, ImageUrl, TextPart, ToolCall
from cortex_server.dialects.json_input import read, type_of

Content = str | list[Raw] | None


class Text(Struct):
    """{"type": "text"}."""

    text: str


class Source(Struct):
    """Where an image or a document is."""

    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: str | list[Raw] | None = None


class Sourced(Struct):
    """{"type": "image"} and {"type": "document"}."""

    source: Source
    title: str | None = None
    context: str | None = None


class SearchResult(Struct):
    """{"type": "search_result"}."""

    source: str
    title: str
    content: list[Text]


class ToolUse(Struct):
    """{"type": "tool_use"}."""

    id: str
    name: str
    input: Raw = Raw(b"{}")


class ToolResult(Struct):
    """{"type": "tool_result"}."""

    tool_use_id: str
    content: str | list[Raw] | None = None
    is_error: bool | None = None


class Thinking(Struct):
    """{"type": "thinking"}."""

    thinking: str = ""


class ToolReference(Struct):
    """{"type": "tool_reference"}."""

    tool_name: str


_texts = msgspec.json.Decoder(Text)
_sourced = msgspec.json.Decoder(Sourced)
_search_results = msgspec.json.Decoder(SearchResult)
_tool_uses = msgspec.json.Decoder(ToolUse)
_tool_results = msgspec.json.Decoder(ToolResult)
_thinkings = msgspec.json.Decoder(Thinking)
_references = msgspec.json.Decoder(ToolReference)


def blocks(content: Content, where: str) -> Iterator[tuple[str, Raw, str]]:
    """(type, block, place) of each block; a string is one text block."""
    if isinstance(content, str):
        if content:
            yield "text", Raw(msgspec.json.encode({"text": content})), where
        return
    for position, block in enumerate(content or ()):
        place = f"{where}.{position}"
        kind = type_of(block, place)
        if kind is None:
            raise BadRequest(f"{place}: the block has no type", param=place)
        yield kind, block, place


def is_server_run(kind: str) -> bool:
    """Whether a block tells of a tool that ran on Anthropic's side: nothing here can use it."""
    return kind in {"server_tool_use", "mcp_tool_use", "container_upload", "fallback"} or (
        kind.endswith("_tool_result") and kind != "tool_result"
    )


def refuse(kind: str, place: str) -> BadRequest:
    """The error for a block that has no counterpart."""
    return BadRequest(f"{place}: blocks of type {kind!r} are not supported here", param=place)


def text(block: Raw, place: str) -> str:
    """The text of a text block."""
    return read(_texts, block, place).text


def thinking(block: Raw, place: str) -> str:
    """The thinking of a thinking block; its signature means nothing to local engines."""
    return read(_thinkings, block, place).thinking


def user_part(kind: str, block: Raw, place: str) -> TextPart | ImagePart:
    """A block of a user turn, or of a tool's result, as a part.

    Raises:
        BadRequest: the block has no counterpart.
    """
    match kind:
        case "text":
            return TextPart(text(block, place))
        case "image":
            return _image(read(_sourced, block, place).source, place)
        case "document":
            return TextPart(_document(read(_sourced, block, place), place))
        case "search_result":
            found = read(_search_results, block, place)
            return TextPart(
                "\n".join([found.title, found.source, *(part.text for part in found.content)])
            )
        case _:
            raise refuse(kind, place)


def tool_call(block: Raw, place: str) -> ToolCall:
    """A tool_use block as a call; its input stays the JSON text that came."""
    use = read(_tool_uses, block, place)
    arguments = bytes(use.input).decode()
    if not arguments.startswith("{"):
        raise BadRequest(f"{place}.input: Expected an object", param=f"{place}.input")
    return ToolCall(use.id, CalledFunction(use.name, arguments))


def tool_result(block: Raw, place: str) -> tuple[str, str, list[ImagePart]]:
    """(call id, text, images) of a tool_result block.

    OpenAI's tool message has no field for a failure, so the text says it, once. An empty result
    stays empty; one of images alone says so, because an empty one makes models call again.
    """
    result = read(_tool_results, block, place)
    texts: list[str] = []
    images: list[ImagePart] = []
    for kind, inner, where in blocks(result.content, f"{place}.content"):
        if kind == "tool_reference":
            texts.append(f"Tool loaded: {read(_references, inner, where).tool_name}")
        elif kind in {"text", "image", "document", "search_result"}:
            part = user_part(kind, inner, where)
            if isinstance(part, ImagePart):
                images.append(part)
            else:
                texts.append(part.text)
        else:
            texts.append(bytes(inner).decode())
    said = "\n".join(texts) or ("(image)" if images else "")
    if result.is_error and not said.lower().startswith("error"):
        said = f"Error: {said}"
    return result.tool_use_id, said, images


def _image(source: Source, place: str) -> ImagePart:
    if source.type == "base64":
        return ImagePart(ImageUrl(f"data:{source.media_type};base64,{source.data}"))
    if source.type == "url":
        return ImagePart(ImageUrl(source.url))
    raise BadRequest(
        f"{place}.source: an image of source {source.type!r} can't be fetched here",
        param=f"{place}.source",
        hints=("Send the image as base64 or as a url.",),
    )


def _document(document: Sourced, place: str) -> str:
    source = document.source
    if source.type == "text":
        body = source.data
    elif source.type == "content":
        inner = blocks(source.content, f"{place}.source.content")
        parts = [user_part(*block) for block in inner]
        if any(isinstance(part, ImagePart) for part in parts):
            raise BadRequest(f"{place}: images inside documents are not supported", param=place)
        body = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    else:
        raise BadRequest(
            f"{place}: a document of source {source.type!r} ({source.media_type or 'no media type'}) is not supported",
            param=place,
            hints=("Send the document's text, or its pages as images.",),
        )
    return "\n\n".join(part for part in (document.title, document.context, body) if part)
