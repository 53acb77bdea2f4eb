"""`--watch`: draw the fleet again at each change, and live through the gateway's absence."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cortex_cli.client import connect
from cortex_common.errors import AuthenticationFailed, CortexError, PermissionRefused
from cortex_common.fleet import FleetSnapshot
from cortex_common.trail import TrailEntry

if TYPE_CHECKING:
    from cortex_common.operator_client import OperatorClient

T = TypeVar("T")

FROM_THE_FIRST = "0.0"
"""An event id before all others."""

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
_LONGEST_BACKOFF_S = 10.0
_SHORTEST_FRAME_S = 0.25
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Lost:
    """The gateway is not to be had now.

    Attributes:
        why: the error's message.
        retry_in_s: seconds until the next attempt.
    """

    why: str
    retry_in_s: float


async def news(
    gateway: str | None, *, again: bool = False, pause_s: float = 0.25
) -> AsyncGenerator[FleetSnapshot | TrailEntry | Lost, None]:
    """Every change of the fleet and entry of the trail; after each loss of the gateway, attempts with growing pauses.

    Args:
        gateway: URL or context.
        again: begin with the entries that the gateway still has, not with the next one.
        pause_s: changes within so many seconds come as one; 0.25 to 10.

    Raises:
        AuthenticationFailed, PermissionRefused: waiting would not help.
    """
    # httpx comes with it, which `--help` does without.
    from cortex_common.http import Bookmark

    bookmark = Bookmark(FROM_THE_FIRST if again else None)
    pause = 0.5
    while True:
        try:
            async with connect(gateway) as client:
                async for seen in client.news(bookmark, pause_s=pause_s):
                    pause = 0.5
                    yield seen
            why = "the gateway ended the stream"
        except (AuthenticationFailed, PermissionRefused):
            raise
        except CortexError as lost:
            why = lost.message
        yield Lost(why, pause)
        await asyncio.sleep(pause)
        pause = min(_LONGEST_BACKOFF_S, pause * 2)


async def follow(gateway: str | None) -> AsyncGenerator[FleetSnapshot | Lost, None]:
    """`news` without the trail."""
    async with aclosing(news(gateway)) as told:
        async for seen in told:
            if not isinstance(seen, TrailEntry):
                yield seen


async def watch(gateway: str | None, draw: Callable[[FleetSnapshot], str]) -> None:
    """Draw until interrupted: in place on a terminal, else one drawing after another."""
    async for seen in follow(gateway):
        if isinstance(seen, Lost):
            say_lost(seen)
            continue
        _write(draw(seen))
        if sys.stdout.isatty():
            # Changes can come faster than anybody reads; the newest is what counts.
            await asyncio.sleep(_SHORTEST_FRAME_S)


async def poll(
    gateway: str | None,
    ask: Callable[[OperatorClient], Awaitable[T]],
    draw: Callable[[T], str],
) -> None:
    """Ask and draw every second until interrupted, for what the gateway sends no events of.

    Raises:
        AuthenticationFailed, PermissionRefused: waiting would not help.
    """
    before = None
    async with connect(gateway) as client:
        while True:
            try:
                text = draw(await ask(client))
            except (AuthenticationFailed, PermissionRefused):
                raise
            except CortexError as lost:
                say_lost(Lost(lost.message, _POLL_S))
            else:
                if text != before:
                    _write(text)
                before = text
            await asyncio.sleep(_POLL_S)


def say_lost(lost: Lost) -> None:
    """Tell the person that the gateway is away."""
    sys.stderr.write(f"lost: {lost.why}; trying again in {lost.retry_in_s:.1f}s\n")


def _write(text: str) -> None:
    """In place on a terminal, else after what was written before."""
    sys.stdout.write(f"{CLEAR if sys.stdout.isatty() else ''}{text}\n")
    sys.stdout.flush()
