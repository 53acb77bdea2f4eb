"""Translation of Anthropic's content blocks to parts of chat messages.

Source: the Messages API as typed in the anthropic SDK. A block without a counterpart is rejected by its type and
position, or dropped if the model does not need to know about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_server.dialects.chat import FunctionCall, ImagePart, ImageUrl, TextPart, ToolCall
from cortex_server.dialects.conversation import ToolOutput
from cortex_server.dialects.json_input import decode, object_type

Content = str | list[Raw] | None


class TextInput(Struct):
    """A block of type "text"."""

    text: str


class SourceInput(Struct):
    """The `source` of an image or document."""

    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: str | list[Raw] | None = None


class MediaInput(Struct):
    """A block of type "image" or "document"."""

    source: SourceInput
    title: str | None = None
    context: str | None = None


class SearchResultInput(Struct):
    """A block of type "search_result"."""

    source: str
    title: str
    content: list[TextInput]


class ToolUseInput(Struct):
    """A block of type "tool_use"."""

    id: str
    name: str
    input: Raw = Raw(b"{}")


class ToolResultInput(Struct):
    """A block of type "tool_result"."""

    tool_use_id: str
    content: str | list[Raw] | None = None
    is_error: bool | None = None


class ThinkingInput(Struct):
    """A block of type "thinking"; its signature means nothing to local engines."""

    thinking: str = ""


class ToolReferenceInput(Struct):
    """A block of type "tool_reference"."""

    tool_name: str


_texts = msgspec.json.Decoder(TextInput)
_media = msgspec.json.Decoder(MediaInput)
_search_results = msgspec.json.Decoder(SearchResultInput)
_tool_uses = msgspec.json.Decoder(ToolUseInput)
_tool_results = msgspec.json.Decoder(ToolResultInput)
_thinking = msgspec.json.Decoder(ThinkingInput)
_tool_references = msgspec.json.Decoder(ToolReferenceInput)


def blocks(content: Content, path: str) -> Iterator[tuple[str, Raw, str]]:
    """Yield the type, JSON and path of each block; a string counts as one text block."""
    if isinstance(content, str):
        if content:
            yield "text", Raw(msgspec.json.encode({"text": content})), path
        return
    for position, block in enumerate(content or ()):
        block_path = f"{path}.{position}"
        block_type = object_type(block, block_path)
        if block_type is None:
            raise BadRequest(f"{block_path}: the block has no type", param=block_path)
        yield block_type, block, block_path


def is_server_tool_block(block_type: str) -> bool:
    """Return whether a block is about a tool that Anthropic ran, which local engines can't use."""
    return block_type in {"server_tool_use", "mcp_tool_use", "container_upload", "fallback"} or (
        block_type.endswith("_tool_result") and block_type != "tool_result"
    )


def unsupported_block(block_type: str, path: str) -> BadRequest:
    """Return the error for a block that has no counterpart."""
    return BadRequest(f"{path}: blocks of type {block_type!r} are not supported", param=path)


def text(block: Raw, path: str) -> str:
    """Return the text of a text block."""
    return decode(_texts, block, path).text


def thinking(block: Raw, path: str) -> str:
    """Return the text of a thinking block."""
    return decode(_thinking, block, path).thinking


def user_part(block_type: str, block: Raw, path: str) -> TextPart | ImagePart:
    """Translate a block of a user turn or of a tool result to a message part.

    Raises:
        BadRequest: the block has no counterpart.
    """
    match block_type:
        case "text":
            return TextPart(text(block, path))
        case "image":
            return _image(decode(_media, block, path).source, path)
        case "document":
            return TextPart(_document(decode(_media, block, path), path))
        case "search_result":
            result = decode(_search_results, block, path)
            return TextPart(
                "\n".join([result.title, result.source, *(part.text for part in result.content)])
            )
        case _:
            raise unsupported_block(block_type, path)


def tool_call(block: Raw, path: str) -> ToolCall:
    """Translate a tool_use block to a tool call; its input keeps its JSON text."""
    tool_use = decode(_tool_uses, block, path)
    arguments = bytes(tool_use.input).decode()
    if not arguments.startswith("{"):
        raise BadRequest(f"{path}.input: Expected an object", param=f"{path}.input")
    return ToolCall(tool_use.id, FunctionCall(tool_use.name, arguments))


def tool_output(block: Raw, path: str) -> ToolOutput:
    """Translate a tool_result block.

    OpenAI's tool message has no field for a failure, so the text gets the prefix "Error: ". An empty result stays
    empty; one with only images gets a placeholder, because an empty result makes models call the tool again.
    """
    result = decode(_tool_results, block, path)
    texts: list[str] = []
    images: list[ImagePart] = []
    for inner_type, inner, inner_path in blocks(result.content, f"{path}.content"):
        if inner_type == "tool_reference":
            texts.append(f"Tool loaded: {decode(_tool_references, inner, inner_path).tool_name}")
        elif inner_type in {"text", "image", "document", "search_result"}:
            part = user_part(inner_type, inner, inner_path)
            if isinstance(part, ImagePart):
                images.append(part)
            else:
                texts.append(part.text)
        else:
            texts.append(bytes(inner).decode())
    joined = "\n".join(texts) or ("(image)" if images else "")
    if result.is_error and not joined.lower().startswith("error"):
        joined = f"Error: {joined}"
    return ToolOutput(result.tool_use_id, joined, images)


def _image(source: SourceInput, path: str) -> ImagePart:
    if source.type == "base64":
        return ImagePart(ImageUrl(f"data:{source.media_type};base64,{source.data}"))
    if source.type == "url":
        return ImagePart(ImageUrl(source.url))
    raise BadRequest(
        f"{path}.source: images with a source of type {source.type!r} are not supported",
        param=f"{path}.source",
        hints=("Send the image as base64 or as a URL.",),
    )


def _document(document: MediaInput, path: str) -> str:
    source = document.source
    if source.type == "text":
        body = source.data
    elif source.type == "content":
        inner = blocks(source.content, f"{path}.source.content")
        parts = [user_part(*block) for block in inner]
        if any(isinstance(part, ImagePart) for part in parts):
            raise BadRequest(f"{path}: images in documents are not supported", param=path)
        body = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    else:
        media_type = source.media_type or "no media type"
        raise BadRequest(
            f"{path}: documents with a source of type {source.type!r} ({media_type}) are not supported",
            param=path,
            hints=("Send the document as text, or its pages as images.",),
        )
    return "\n\n".join(part for part in (document.title, document.context, body) if part)
