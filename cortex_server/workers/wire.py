"""What the control process and its workers say to each other: length-prefixed MessagePack over a socket pair.

Both ends are the same build, started by one another, so nothing here has a version, and whatever can't be read is a
defect that ends the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from cortex_common.errors import BY_CODE, CortexError
from cortex_server.proxy.access_log import RequestLine

_PREFIX = 4
"""Bytes of a message's length, most significant first."""


class _Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    pass


# -- from the control process to a worker ----------------------------------------------------------


class Start(_Message, frozen=True):
    """The first word: what does not change while the worker runs.

    Attributes:
        host: address to listen on.
        port: of it.
        listener: descriptor of a listening socket that was inherited; then host and port are not listened on.
        backstage: path of the Unix socket on which the control process serves everything but inference.
        workers: how many there are.
        level: of the log, as logging numbers it.
    """

    host: str
    port: int
    listener: int | None
    backstage: str
    workers: int
    level: int


class Spec(msgspec.Struct, array_like=True, frozen=True):
    """A row of the routing table: see `fleet.targets.Target`.

    Attributes:
        number: of this target; another one that takes its place has another number.
        usable: it takes new requests.
        trial: it failed, and one request is to try it.
        suspect: the control process wants to hear of its next success.
    """

    number: int
    id: str
    model: str
    node: str
    url: str
    slots: int
    engine: str
    context: int | None
    served_as: str
    retries: bool
    overflow: bool
    usable: bool
    trial: bool
    suspect: bool


class KeySpec(msgspec.Struct, array_like=True, frozen=True):
    """A key.

    Attributes:
        terms: as JSON.
        row: of the board, where its use is counted.
    """

    name: str
    hash: str
    terms: bytes
    row: int


class Settings(msgspec.Struct, array_like=True, frozen=True):
    """The configuration, each file as JSON."""

    gateway: bytes
    catalogue: bytes


class State(_Message, frozen=True):
    """What has changed; the worker works by it before it answers with `Seen`.

    Attributes:
        version: of the whole state.
        models: the rows of each model whose rows have changed; none where it is gone.
        unheard: see `Names`.
        keys: all keys.
        settings: all settings.
    """

    version: int
    models: dict[str, tuple[Spec, ...]]
    unheard: tuple[str, ...] = ()
    keys: tuple[KeySpec, ...] | None = None
    settings: Settings | None = None


class Elsewhere(_Message, frozen=True):
    """How many requests the other workers have on targets, by number; and where conversations are by now.

    Attributes:
        homes: instance by the hash of a session.
    """

    busy: dict[int, int]
    homes: dict[int, str]


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """A `CortexError`; `details` is JSON."""

    code: str
    message: str
    hints: tuple[str, ...]
    param: str | None
    retry_after: float | None
    details: bytes

    @classmethod
    def of(cls, error: CortexError) -> Failure:
        """The error as it travels."""
        details = json.dumps(error.details).encode()
        return cls(error.code, error.message, error.hints, error.param, error.retry_after, details)

    @property
    def error(self) -> CortexError:
        """The error as it was."""
        kind = BY_CODE.get(self.code, CortexError)
        return kind(
            self.message,
            hints=self.hints,
            param=self.param,
            retry_after=self.retry_after,
            details=json.loads(self.details),
        )


class Granted(_Message, frozen=True):
    """A model that was asked for is ready, or `failure` says why it will not be."""

    ask: int
    instance: str
    failure: Failure | None = None


class HowFar(_Message, frozen=True):
    """How far the load of a model is that this worker waits for."""

    model: str
    state: str
    node: str | None
    position: int
    eta_s: float | None
    why: str | None


class YourTurn(_Message, frozen=True):
    """A request that queued may go on; or it waited for too long."""

    ask: int
    go: bool


class Question(_Message, frozen=True):
    """Asks for `Answer`: the requests under way, or the end of the one of that id."""

    number: int
    cancel: str | None = None


class Drain(_Message, frozen=True):
    """Send new requests away from now on, and say `Drained` when none is left."""


class End(_Message, frozen=True):
    """Cut off what is left, and end."""


ToWorker = Start | State | Elsewhere | Granted | HowFar | YourTurn | Question | Drain | End


# -- from a worker to the control process ----------------------------------------------------------


class Seen(_Message, frozen=True):
    """It works by that version of the state; what it had under way then has been reported before."""

    version: int


class Listening(_Message, frozen=True):
    """It takes requests."""


class Ended(msgspec.Struct, array_like=True, frozen=True):
    """A request that ended, with all that the books need.

    Attributes:
        line: for the journal.
        target: number of the instance that had it last.
        seconds: from its arrival to its last byte.
        first: seconds to its first.
        queued: seconds that it waited.
        cached: tokens of its prompt that the engine had in its cache.
        engine: its kind, where something was mended.
        repairs: what was mended.
    """

    line: RequestLine
    endpoint: int | None
    seconds: float
    first: float | None
    queued: float
    cached: int
    engine: str = ""
    repairs: dict[str, int] = {}


class Counts(msgspec.Struct, array_like=True, frozen=True):
    """What a histogram counted since the last time."""

    counts: tuple[int, ...]
    total: float


class Report(_Message, frozen=True):
    """What happened since the last one.

    Attributes:
        flights: of each target that changed: its number, requests on it now, and the most that there were.
        ended: requests that ended.
        homes: sessions that have a new home: the instance by the hash of the session.
        active: requests under way.
    """

    flights: tuple[tuple[int, int, int], ...]
    ended: tuple[Ended, ...]
    homes: dict[int, str]
    active: int


class Pulse(_Message, frozen=True):
    """Once a second: it lives; and what the loop and the way to the engines took."""

    overhead: Counts
    lag: Counts


class Verdict(_Message, frozen=True):
    """A target failed, with the reason; or did its work after it had failed."""

    endpoint: int
    reason: str | None


class Obtain(_Message, frozen=True):
    """A model is wanted that has no ready instance."""

    ask: int
    model: str
    request: str
    timeout_s: float


class Forget(_Message, frozen=True):
    """That is not wanted any more."""

    ask: int


class Queue(_Message, frozen=True):
    """A request found no place."""

    ask: int
    key: str
    priority: int


class Unqueue(_Message, frozen=True):
    """It waits no longer; or, after `YourTurn`, its place is counted on the board."""

    ask: int


class PlaceFree(_Message, frozen=True):
    """A request ended while others queued."""


class Answer(_Message, frozen=True):
    """To a `Question`: what was asked, as JSON, or why not."""

    number: int
    body: bytes
    failure: Failure | None = None


class Logged(_Message, frozen=True):
    """A line of its log.

    Attributes:
        level: as logging numbers it.
    """

    logger: str
    level: int
    event: str
    facts: dict[str, str | float | bool]


class Drained(_Message, frozen=True):
    """No request is left."""


ToControl = (
    Seen
    | Listening
    | Report
    | Pulse
    | Verdict
    | Obtain
    | Forget
    | Queue
    | Unqueue
    | PlaceFree
    | Answer
    | Drained
    | Logged
)

In = TypeVar("In")


class Channel(asyncio.Protocol, Generic[In]):
    """One end of the connection.

    Args:
        kind: what comes in.
        heard: called with each message.
        lost: called when the other end is gone.
    """

    def __init__(self, kind: Any, heard: Callable[[In], None], lost: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._encoder = msgspec.msgpack.Encoder()
        self._heard = heard
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def send(self, message: _Message) -> bool:
        """Say something; false when there is nobody to hear it."""
        if self._transport is None or self._transport.is_closing():
            return False
        body = self._encoder.encode(message)
        self._transport.write(len(body).to_bytes(_PREFIX, "big") + body)
        return True

    def close(self) -> None:
        """Hang up, once all is said."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _PREFIX:
            end = at + _PREFIX + int.from_bytes(self._buffer[at : at + _PREFIX], "big")
            if len(self._buffer) < end:
                break
            message = self._decoder.decode(bytes(self._buffer[at + _PREFIX : end]))
            at = end
            self._heard(message)
        del self._buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Part of asyncio.Protocol."""
        self._transport = None
        self._lost()
