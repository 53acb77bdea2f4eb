"""POST /v1/responses/compact: a conversation as a summary, in an item that a later request can begin with.

The summary is encoded but not encrypted: the client sends it back, and could send any other text in its place.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest
from cortex_server.dialects.json_input import object_type
from cortex_server.dialects.responses.resource import ResponsesUsage

_PREFIX = "cortex:"

PROMPT = (
    "Summarize the conversation above, so that it can be continued from the summary alone. Keep the task, decisions, "
    "facts, names, numbers, file paths, the results of tools, and what remains to be done. Write only the summary."
)
"""What the model is asked at the end of the conversation."""


class CompactionItem(Struct, tag_field="type", tag="compaction"):
    """The summary of a conversation."""

    id: str
    encrypted_content: str


class CompactedResponse(Struct):
    """The response of POST /v1/responses/compact: the user's messages, and the summary."""

    id: str
    created_at: int
    output: Sequence[Raw | CompactionItem]
    usage: ResponsesUsage
    object: Literal["response.compaction"] = "response.compaction"


class _MessageEcho(Struct, tag_field="type", tag="message"):
    id: str
    content: Sequence[Raw]
    role: Literal["user"] = "user"
    status: Literal["completed"] = "completed"


class _Text(Struct, tag_field="type", tag="input_text"):
    text: str


class _MessageInput(Struct):
    role: str | None = None
    content: str | list[Raw] | None = None


_messages = msgspec.json.Decoder(_MessageInput)


def encode_summary(summary: str) -> str:
    """Return the `encrypted_content` of an item."""
    return _PREFIX + base64.b64encode(summary.encode()).decode()


def decode_summary(encrypted_content: str, path: str) -> str:
    """Return the summary in the `encrypted_content` of an item.

    Raises:
        BadRequest: the item was not made by a gateway of cortex.
    """
    error = BadRequest(f"{path}: the compaction was made by another service", param=path)
    if not encrypted_content.startswith(_PREFIX):
        raise error
    try:
        return base64.b64decode(encrypted_content[len(_PREFIX) :], validate=True).decode()
    except ValueError:
        raise error from None


def user_messages(items: Sequence[Raw], prefix: str) -> list[Raw]:
    """Return the user's messages among input items that were translated, with ids that begin with the prefix."""
    found = []
    for position, item in enumerate(items):
        if object_type(item, "input") not in {None, "message"}:
            continue
        message = _messages.decode(item)
        if message.role != "user":
            continue
        content = message.content
        parts = [Raw(msgspec.json.encode(_Text(content)))] if isinstance(content, str) else content
        echo = _MessageEcho(f"msg_{prefix}_{position}", parts or ())
        found.append(Raw(msgspec.json.encode(echo)))
    return found
