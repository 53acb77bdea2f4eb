"""Recent responses of the Responses API, in memory, for `previous_response_id` and references to items.

A key sees its own responses only. A response that is not to be stored can be kept for the WebSocket that it was sent
through: only requests of that connection see it, and it is forgotten with the connection. The least recently used ones
are forgotten first: when a key has too many or they are too large, those of the key; when all are too large, any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from msgspec import Raw

from cortex_server.auth.keys import Key

_MAX_PER_KEY = 1000
"""Responses of one key."""

_SHARE_OF_KEY = 4
"""One key gets at most this part of the memory, as a divisor."""

Owner = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One turn of a conversation.

    Attributes:
        id: id of the response.
        previous: id of the response before it; None if it begins a conversation.
        input: the items of the request, as JSON.
        output: the items of the response by their ids, as JSON.
        body: the response as JSON.
        connection: the WebSocket that it is kept for; 0 if the key can see it.
    """

    id: str
    previous: str | None
    input: tuple[bytes, ...]
    output: dict[str, bytes]
    body: bytes
    connection: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory, without overhead."""
        return sum(map(len, self.input)) + sum(map(len, self.output.values())) + len(self.body)


@dataclass(slots=True)
class _Shelf:
    """What one key has stored, the least recently used response first."""

    size: int = 0
    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    items: dict[str, str] = field(default_factory=dict)  # ids of items: that of their response


class ResponseStore:
    """The stored responses of all keys.

    Args:
        max_bytes: memory for all; 0 stores nothing.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._shelves: dict[Owner, _Shelf] = {}
        self._recent: OrderedDict[tuple[Owner, str], None] = OrderedDict()

    @property
    def enabled(self) -> bool:
        """Whether responses are stored."""
        return self._max_bytes > 0

    @property
    def size(self) -> int:
        """Bytes stored, without overhead."""
        return self._size

    def limit(self, max_bytes: int) -> None:
        """Change the memory for all."""
        self._max_bytes = max_bytes
        while self._recent and self._size > max_bytes:
            self._forget(*next(iter(self._recent)))

    def of(self, key: Key, connection: int = 0) -> OwnResponses:
        """Return what a key may see, through a WebSocket if this is not 0."""
        return OwnResponses(self, (key.name, key.hash), connection)

    def put(self, owner: Owner, response: StoredResponse) -> None:
        """Store a response, unless it alone is too large."""
        self.delete(owner, response.id)
        share = self._max_bytes // _SHARE_OF_KEY
        if response.size > share:
            return
        shelf = self._shelves.setdefault(owner, _Shelf())
        while shelf.responses and (
            len(shelf.responses) >= _MAX_PER_KEY or shelf.size + response.size > share
        ):
            self._forget(owner, next(iter(shelf.responses)))
        while self._recent and self._size + response.size > self._max_bytes:
            self._forget(*next(iter(self._recent)))
        shelf = self._shelves.setdefault(owner, shelf)
        shelf.responses[response.id] = response
        shelf.items.update(dict.fromkeys(response.output, response.id))
        shelf.size += response.size
        self._size += response.size
        self._recent[owner, response.id] = None

    def get(self, owner: Owner, response_id: str) -> StoredResponse | None:
        """Return a response, which becomes the most recently used one."""
        shelf = self._shelves.get(owner)
        found = None if shelf is None else shelf.responses.get(response_id)
        if shelf is None or found is None:
            return None
        shelf.responses.move_to_end(response_id)
        self._recent.move_to_end((owner, response_id))
        return found

    def find(self, owner: Owner, item_id: str) -> StoredResponse | None:
        """Return the response with this item in its output."""
        shelf = self._shelves.get(owner)
        response_id = shelf and shelf.items.get(item_id)
        return self.get(owner, response_id) if response_id else None

    def delete(self, owner: Owner, response_id: str) -> bool:
        """Forget a response; return whether it was stored."""
        shelf = self._shelves.get(owner)
        if shelf is None or response_id not in shelf.responses:
            return False
        self._forget(owner, response_id)
        return True

    def forget_connection(self, owner: Owner, connection: int) -> None:
        """Forget what was kept for a WebSocket."""
        shelf = self._shelves.get(owner)
        kept = shelf.responses.values() if shelf is not None else ()
        for response_id in [turn.id for turn in kept if turn.connection == connection]:
            self._forget(owner, response_id)

    def _forget(self, owner: Owner, response_id: str) -> None:
        shelf = self._shelves[owner]
        response = shelf.responses.pop(response_id)
        for item_id in response.output:
            shelf.items.pop(item_id, None)
        shelf.size -= response.size
        self._size -= response.size
        del self._recent[owner, response_id]
        if not shelf.responses:
            del self._shelves[owner]


@dataclass(frozen=True, slots=True)
class OwnResponses:
    """The stored responses of one key.

    Attributes:
        store: the stored responses of all keys.
        owner: the key.
        connection: the WebSocket that is used; 0 if none is.
    """

    store: ResponseStore
    owner: Owner
    connection: int = 0

    def put(self, response: StoredResponse, *, stored: bool) -> None:
        """Store a response, or else keep it for the WebSocket, if there is one."""
        if stored or self.connection:
            kept = response if stored else replace(response, connection=self.connection)
            self.store.put(self.owner, kept)

    def get(self, response_id: str) -> StoredResponse | None:
        """Return a response."""
        return self._visible(self.store.get(self.owner, response_id))

    def delete(self, response_id: str) -> bool:
        """Forget a response; return whether it was stored."""
        return self.get(response_id) is not None and self.store.delete(self.owner, response_id)

    def forget_connection(self) -> None:
        """Forget what was kept for the WebSocket."""
        if self.connection:
            self.store.forget_connection(self.owner, self.connection)

    def item(self, item_id: str) -> Raw | None:
        """Return one item; None if it is not stored."""
        found = self._visible(self.store.find(self.owner, item_id))
        return None if found is None else Raw(found.output[item_id])

    def conversation(self, response_id: str) -> Sequence[Raw] | None:
        """Return all items up to the end of a response; None if it, or one before it, is not stored."""
        turns = []
        turn_id: str | None = response_id
        while turn_id is not None:
            turn = self.get(turn_id)
            if turn is None:
                return None
            turns.append(turn)
            turn_id = turn.previous
        items = (item for turn in reversed(turns) for item in (*turn.input, *turn.output.values()))
        return [Raw(item) for item in items]

    def _visible(self, found: StoredResponse | None) -> StoredResponse | None:
        return found if found is not None and found.connection in {0, self.connection} else None
