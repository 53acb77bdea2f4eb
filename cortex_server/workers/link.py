"""The control process's end of one worker: hears what it says, asks the conductor for it, and tells it what changes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cortex_common.errors import CortexError, ModelNotFound, Unavailable
from cortex_common.schema.instances import ModelId
from cortex_server.auth.keys import Keyring
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.workers.books import Books, changes
from cortex_server.workers.logged import log_again
from cortex_server.workers.queue import Queued, SharedQueue
from cortex_server.workers.wire import (
    Answer,
    Channel,
    Drained,
    Elsewhere,
    Failure,
    Forget,
    Granted,
    HowFar,
    KeySpec,
    Listening,
    Logged,
    Obtain,
    PlaceFree,
    Pulse,
    Question,
    Queue,
    Report,
    Seen,
    Settings,
    Spec,
    State,
    ToControl,
    Unqueue,
    Verdict,
)

log = logging.getLogger("cortex.workers")

TELL_PROGRESS_S = 1.0

ANSWER_S = 5.0
"""A worker that has not answered by then hangs, and will be replaced."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All that workers work by, at one version."""

    version: int
    models: Mapping[str, tuple[Spec, ...]]
    unheard: tuple[str, ...]
    keys: tuple[KeySpec, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class House:
    """What all links share.

    Attributes:
        touched: called with the numbers of targets whose requests changed, and with sessions' new homes.
        unsettled: called when what a verdict changed is to be told.
    """

    fleet: Fleet
    controller: Controller
    keyring: Keyring
    books: Books
    queue: SharedQueue
    touched: Callable[[set[int], dict[int, str]], None]
    unsettled: Callable[[], None]


class Link:
    """See the module.

    Args:
        column: which worker.
        house: what all links share.

    Attributes:
        listening: set once it takes requests, or is gone.
        drained: set once it has no more, or is gone.
        lost: set once it is gone.
        active: requests under way, as it last said.
        heard_at: when it last said anything, by the event loop's time.
    """

    def __init__(self, column: int, house: House) -> None:
        self.column = column
        self.channel: Channel[ToControl] = Channel(ToControl, self._heard, self._gone)
        self.listening = asyncio.Event()
        self.drained = asyncio.Event()
        self.lost = asyncio.Event()
        self.active = 0
        self._house = house
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._told: Whole | None = None
        self._seen = 0
        self._news = asyncio.Event()
        self._asks: dict[int, asyncio.Task[None]] = {}
        self._queued: dict[int, Queued] = {}
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Report: self._report,
            Pulse: house.books.pulse,
            Seen: self._has_seen,
            Verdict: self._verdict,
            Obtain: self._begin_obtain,
            Forget: self._forget,
            Queue: self._queue,
            Unqueue: self._unqueue,
            PlaceFree: lambda _: house.queue.look(),
            Answer: self._answered,
            Listening: lambda _: self.listening.set(),
            Drained: lambda _: self.drained.set(),
            Logged: lambda told: log_again(told, column),
        }

    # -- to the worker -------------------------------------------------------------------------

    def tell(self, whole: Whole) -> None:
        """Tell what has changed since the last time."""
        before, self._told = self._told, whole
        if before is None:
            state = State(
                whole.version, dict(whole.models), whole.unheard, whole.keys, whole.settings
            )
        else:
            state = State(
                whole.version,
                changes(before.models, whole.models),
                whole.unheard,
                None if whole.keys == before.keys else whole.keys,
                None if whole.settings == before.settings else whole.settings,
            )
        self.channel.send(state)

    def tell_elsewhere(self, numbers: set[int], homes: dict[int, str]) -> None:
        """Tell what the other workers are doing."""
        self.channel.send(Elsewhere(self._house.books.elsewhere(self.column, numbers), homes))

    async def seen(self, version: int) -> None:
        """Return once the worker works by that version, or is gone."""
        while self._seen < version and not self.lost.is_set():
            self._news.clear()
            await self._news.wait()

    async def ask(self, cancel: str | None = None) -> bytes:
        """The requests under way; or the end of one of them.

        Raises:
            CortexError: the worker's; `Unavailable` when it is gone, or does not answer.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[number] = answer
        self.channel.send(Question(number, cancel))
        try:
            async with asyncio.timeout(ANSWER_S):
                told = await answer
        except TimeoutError as late:
            raise Unavailable(f"worker {self.column} does not answer", retry_after=5.0) from late
        finally:
            self._answers.pop(number, None)
        if told.failure is not None:
            raise told.failure.error
        return told.body

    # -- from the worker -----------------------------------------------------------------------

    def _heard(self, message: ToControl) -> None:
        self.heard_at = self._loop.time()
        self._handlers[type(message)](message)

    def _has_seen(self, told: Seen) -> None:
        self._seen = told.version
        self._news.set()

    def _forget(self, told: Forget) -> None:
        if (task := self._asks.pop(told.ask, None)) is not None:
            task.cancel()

    def _unqueue(self, told: Unqueue) -> None:
        if (guest := self._queued.pop(told.ask, None)) is not None:
            self._house.queue.leave(guest)

    def _answered(self, told: Answer) -> None:
        if (asked := self._answers.get(told.number)) is not None and not asked.done():
            asked.set_result(told)

    def _report(self, report: Report) -> None:
        house = self._house
        self.active = report.active
        house.books.flights(self.column, report.flights)
        for ended in report.ended:
            house.books.ended(ended)
        house.touched({number for number, _, _ in report.flights}, report.homes)

    def _verdict(self, verdict: Verdict) -> None:
        endpoint = self._house.books.endpoint(verdict.endpoint)
        if endpoint is None:
            return
        if verdict.reason is None:
            self._house.fleet.answered(endpoint)
        else:
            self._house.fleet.failed(endpoint, verdict.reason)
        self._house.unsettled()

    def _queue(self, wish: Queue) -> None:
        guest = self._queued[wish.ask] = Queued(wish.ask, self.channel)
        ring = self._house.keyring
        self._house.queue.join(guest, ring.named(wish.key) or ring.anybody, wish.priority)

    def _begin_obtain(self, wish: Obtain) -> None:
        self._asks[wish.ask] = self._loop.create_task(self._obtain(wish))

    async def _obtain(self, wish: Obtain) -> None:
        house, failure, instance = self._house, None, ""
        telling = self._loop.create_task(self._tell_progress(wish.model))
        try:
            model_config = house.fleet.model_config(wish.model)
            if model_config is None:
                raise ModelNotFound(f"model {wish.model!r} does not exist any more", param="model")  # noqa: TRY301
            instance = await house.controller.acquire(
                model_config, request_id=wish.request, timeout_s=wish.timeout_s
            )
        except CortexError as failed:
            failure = Failure.of(failed)
        except Exception:
            log.exception("waiting_failed")
            failure = Failure.of(CortexError("the gateway failed; its log says how"))
        finally:
            telling.cancel()
            self._asks.pop(wish.ask, None)
        house.unsettled()
        self.channel.send(Granted(wish.ask, instance, failure))

    async def _tell_progress(self, model: str) -> None:
        while True:
            told = self._house.controller.progress(ModelId(model))
            if told is not None:
                self.channel.send(
                    HowFar(model, told.state, told.node, told.position, told.eta_s, told.why)
                )
            await asyncio.sleep(TELL_PROGRESS_S)

    def _gone(self) -> None:
        """The worker ended, however that was: what it had is over."""
        self.lost.set()
        self.listening.set()
        self._news.set()
        self.drained.set()
        for task in self._asks.values():
            task.cancel()
        for guest in self._queued.values():
            self._house.queue.leave(guest)
        self._queued.clear()
        for asked in self._answers.values():
            if not asked.done():
                asked.set_exception(Unavailable("the worker that had it died"))
        self._house.touched(self._house.books.lost(self.column), {})
