"""`--watch`: draw the fleet again at each change, and live through the gateway's absence."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cortex_cli.client import connect
from cortex_common.errors import AuthenticationFailed, CortexError, PermissionDenied
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import FleetSnapshot

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

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
) -> AsyncGenerator[FleetSnapshot | AuditEntry | Lost, None]:
    """Every change of the fleet and entry of the trail; after each loss of the gateway, attempts with growing pauses.

    Args:
        gateway: URL or context.
        again: begin with the entries that the gateway still has, not with the next one.
        pause_s: changes within so many seconds come as one; 0.25 to 10.

    Raises:
        AuthenticationFailed, PermissionRefused: waiting would not help.
    """
    # httpx comes with it, which `--help` does without.
    from cortex_common.client.control import EventCursor

    cursor = EventCursor(FROM_THE_FIRST if again else None)
    pause = 0.5
    while True:
        try:
            async with connect(gateway) as client:
                async for seen in client.watch(cursor, pause_s=pause_s):
                    pause = 0.5
                    yield seen
            why = "the gateway ended the stream"
        except (AuthenticationFailed, PermissionDenied):
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
            if not isinstance(seen, AuditEntry):
                yield seen


async def watch(
    gateway: str | None, draw: Callable[[FleetSnapshot], str], nothing: str = ""
) -> None:
    """Draw until interrupted: in place on a terminal, else one drawing after another.

    Args:
        gateway: URL or context.
        draw: makes the text.
        nothing: what a terminal shows in place of an empty one.
    """
    shown = None
    async for seen in follow(gateway):
        if isinstance(seen, Lost):
            if shown is not None and sys.stdout.isatty():
                # What was told before is of no use; what was last seen may be.
                _write(shown, nothing)
            say_lost(seen)
            continue
        shown = draw(seen)
        _write(shown, nothing)
        if sys.stdout.isatty():
            # Changes can come faster than anybody reads; the newest is what counts.
            await asyncio.sleep(_SHORTEST_FRAME_S)


async def poll(
    gateway: str | None,
    ask: Callable[[OperatorClient], Awaitable[T]],
    draw: Callable[[T], str],
    nothing: str = "",
) -> None:
    """Ask and draw every second until interrupted, for what the gateway sends no events of; see `watch`.

    Raises:
        AuthenticationFailed, PermissionRefused: waiting would not help.
    """
    shown, lost = None, False
    async with connect(gateway) as client:
        while True:
            try:
                text = draw(await ask(client))
            except (AuthenticationFailed, PermissionDenied):
                raise
            except CortexError as failed:
                lost = True
                if shown is not None and sys.stdout.isatty():
                    _write(shown, nothing)
                say_lost(Lost(failed.message, _POLL_S))
            else:
                if lost or text != shown:
                    _write(text, nothing)
                shown, lost = text, False
            await asyncio.sleep(_POLL_S)


def say_lost(lost: Lost) -> None:
    """Tell the person that the gateway is away."""
    sys.stderr.write(f"lost: {lost.why}; trying again in {lost.retry_in_s:.1f}s\n")


def _write(text: str, nothing: str) -> None:
    """In place on a terminal, else after what was written before."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{CLEAR}{text or nothing}\n")
    elif text:
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
