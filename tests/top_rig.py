"""`cortex top` with a source that is fed by hand and an operator that writes down what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from textual.pilot import Pilot

from cortex_cli.tui.app import Look, Top
from cortex_cli.watch import Lost
from cortex_common.errors import CortexError
from cortex_common.fleet import FleetSnapshot, ModelState
from cortex_common.operator import LoadModel, ModelAction, UnloadModel


class FedSource:
    """Tells what it is fed.

    Args:
        first: at once.
    """

    def __init__(self, *first: FleetSnapshot | Lost | CortexError) -> None:
        self._queue: asyncio.Queue[FleetSnapshot | Lost | CortexError] = asyncio.Queue()
        for seen in first:
            self._queue.put_nowait(seen)

    def feed(self, seen: FleetSnapshot | Lost) -> None:
        """Tell this next."""
        self._queue.put_nowait(seen)

    async def follow(self) -> AsyncGenerator[FleetSnapshot | Lost, None]:
        """See `Source.follow`."""
        while True:
            seen = await self._queue.get()
            if isinstance(seen, CortexError):
                raise seen
            yield seen


class NotingOperator:
    """Writes down calls, and answers or fails as told.

    Attributes:
        calls: in their order.
        fails: raised by the next calls.
    """

    def __init__(self, fails: CortexError | None = None) -> None:
        self.calls: list[LoadModel | UnloadModel] = []
        self.fails = fails

    async def load(self, request: LoadModel) -> ModelAction:
        """See `Operator.load`."""
        return self._answer(request, ModelState.LOADING)

    async def unload(self, request: UnloadModel) -> ModelAction:
        """See `Operator.unload`."""
        return self._answer(request, ModelState.UNLOADED)

    def _answer(self, request: LoadModel | UnloadModel, state: ModelState) -> ModelAction:
        self.calls.append(request)
        if self.fails is not None:
            raise self.fails
        return ModelAction(model=request.model, state=state)


def top(
    *first: FleetSnapshot | Lost | CortexError,
    operator: NotingOperator | None = None,
    read_only: bool = False,
    ascii_only: bool = False,
    theme: str = "cortex-dark",
) -> Top:
    """The app over a source that tells `first`."""
    look = Look(
        "http://gw:8000",
        interval_s=0.25,
        read_only=read_only,
        ascii_only=ascii_only,
        theme=theme,
    )
    return Top(FedSource(*first), operator or NotingOperator(), look)


async def until(pilot: Pilot[None], true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let the app work until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await pilot.pause()
            await asyncio.sleep(0.01)
