"""Earlier turns of a conversation: `previous_response_id`, and references to items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest, ItemNotFound, PreviousResponseNotFound
from cortex_server.dialects.json_input import decode
from cortex_server.dialects.responses.parameters import ResponsesRequest

_LONGEST_ID = 64

_HINT = "The gateway keeps recent responses in memory; send the items themselves in input."


class StoredItems(Protocol):
    """The stored responses of one key."""

    def conversation(self, response_id: str) -> Sequence[Raw] | None:
        """Return all items up to the end of a response; None if it, or one before it, is not stored."""
        ...

    def item(self, item_id: str) -> Raw | None:
        """Return one item; None if it is not stored."""
        ...


class Input(NamedTuple):
    """The items that the model gets.

    Attributes:
        earlier: items of earlier turns.
        own: items of the request.
    """

    earlier: Sequence[Raw]
    own: Sequence[Raw]


class _UserMessage(Struct, tag_field="type", tag="message"):
    content: str
    role: str = "user"


class _Reference(Struct):
    type: str | None = None
    id: str | None = None
    role: str | None = None


_references = msgspec.json.Decoder(_Reference)


def resolve_input(request: ResponsesRequest, stored: StoredItems) -> Input:
    """Return the items of a request, with what it refers to.

    Raises:
        PreviousResponseNotFound: the previous response is not stored.
        ItemNotFound: an item is not stored.
        BadRequest: an item is not an object.
    """
    earlier: Sequence[Raw] = ()
    if (previous := request.previous_response_id) is not None:
        found = stored.conversation(previous)
        if found is None:
            raise PreviousResponseNotFound(
                f"previous_response_id: there is no response {shorten(previous)}",
                param="previous_response_id",
                hints=(_HINT,),
            )
        earlier = found
    if isinstance(request.input, str):
        own = [Raw(msgspec.json.encode(_UserMessage(request.input)))] if request.input else []
    else:
        own = [_resolve(raw, f"input.{n}", stored) for n, raw in enumerate(request.input or ())]
    return Input(earlier, own)


def _resolve(raw: Raw, path: str, stored: StoredItems) -> Raw:
    item = decode(_references, raw, path)
    if item.type != "item_reference" and (item.type is not None or item.role is not None):
        return raw
    if item.id is None:
        raise BadRequest(f"{path}: the item has neither a type nor an id", param=path)
    found = stored.item(item.id)
    if found is None:
        raise ItemNotFound(
            f"{path}: there is no item {shorten(item.id)}", param=path, hints=(_HINT,)
        )
    return found


def shorten(sent_id: str) -> str:
    """Return an id that a client sent for an error message: quoted, and not longer than ids are."""
    return repr(sent_id if len(sent_id) <= _LONGEST_ID else f"{sent_id[:_LONGEST_ID]}...")
