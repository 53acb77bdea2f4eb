"""`--watch`: redraw at each change of the fleet, and reconnect when the gateway is unreachable."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cortex_cli.client import connect
from cortex_cli.terminal import write_err, write_out
from cortex_common.errors import AuthenticationFailed, CortexError, PermissionDenied
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import FleetSnapshot

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

T = TypeVar("T")

FIRST_EVENT = "0.0"
"""An event id before all others."""

CLEAR_SCREEN = "\x1b[H\x1b[2J\x1b[3J"
_MIN_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 10.0
_MIN_FRAME_S = 0.25
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The gateway is unreachable.

    Attributes:
        reason: message of the error.
        retry_in_s: seconds until the next attempt.
    """

    reason: str
    retry_in_s: float


async def fleet_updates(
    gateway: str | None, *, replay: bool = False, pause_s: float = 0.25
) -> AsyncGenerator[FleetSnapshot | AuditEntry | ConnectionLost, None]:
    """Yield every change of the fleet and every audit entry, reconnecting with growing pauses.

    Args:
        gateway: URL or context.
        replay: start with the audit entries that the gateway still has instead of with the next one.
        pause_s: seconds within which changes are merged into one; 0.25 to 10.

    Raises:
        AuthenticationFailed, PermissionDenied: reconnecting would not help.
    """
    # Imported here because it imports httpx, which `--help` does not need.
    from cortex_common.client.control import EventCursor

    cursor = EventCursor(FIRST_EVENT if replay else None)
    backoff = _MIN_BACKOFF_S
    while True:
        try:
            async with connect(gateway) as client:
                async for update in client.watch(cursor, pause_s=pause_s):
                    backoff = _MIN_BACKOFF_S
                    yield update
            reason = "the gateway closed the stream"
        except (AuthenticationFailed, PermissionDenied):
            raise
        except CortexError as error:
            reason = error.message
        yield ConnectionLost(reason, backoff)
        await asyncio.sleep(backoff)
        backoff = min(_MAX_BACKOFF_S, backoff * 2)


async def snapshots(gateway: str | None) -> AsyncGenerator[FleetSnapshot | ConnectionLost, None]:
    """Yield the updates of `fleet_updates` without the audit entries."""
    async with aclosing(fleet_updates(gateway)) as updates:
        async for update in updates:
            if not isinstance(update, AuditEntry):
                yield update


async def watch(
    gateway: str | None, draw: Callable[[FleetSnapshot], str], empty_text: str = ""
) -> None:
    """Draw each snapshot until interrupted: in place on a terminal, otherwise one after the other.

    Args:
        gateway: URL or context.
        draw: renders a snapshot.
        empty_text: shown on a terminal in place of an empty drawing.
    """
    text = None
    async for update in snapshots(gateway):
        if isinstance(update, ConnectionLost):
            if text is not None and sys.stdout.isatty():
                # Clears earlier messages but keeps the last known state.
                _write(text, empty_text)
            report_lost(update)
            continue
        text = draw(update)
        _write(text, empty_text)
        if sys.stdout.isatty():
            # Changes can arrive faster than anyone can read; only the newest matters.
            await asyncio.sleep(_MIN_FRAME_S)


async def poll(
    gateway: str | None,
    fetch: Callable[[OperatorClient], Awaitable[T]],
    draw: Callable[[T], str],
    empty_text: str = "",
) -> None:
    """Fetch and draw every second until interrupted, for data without an event stream; see `watch`.

    Raises:
        AuthenticationFailed, PermissionDenied: retrying would not help.
    """
    shown, lost = None, False
    async with connect(gateway) as client:
        while True:
            try:
                text = draw(await fetch(client))
            except (AuthenticationFailed, PermissionDenied):
                raise
            except CortexError as error:
                lost = True
                if shown is not None and sys.stdout.isatty():
                    _write(shown, empty_text)
                report_lost(ConnectionLost(error.message, _POLL_S))
            else:
                if lost or text != shown:
                    _write(text, empty_text)
                shown, lost = text, False
            await asyncio.sleep(_POLL_S)


def report_lost(lost: ConnectionLost) -> None:
    """Write to stderr that the gateway is unreachable."""
    write_err(f"connection lost: {lost.reason}; retrying in {lost.retry_in_s:.1f}s\n")


def _write(text: str, empty_text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(CLEAR_SCREEN)
        write_out(f"{text or empty_text}\n")
    elif text:
        write_out(f"{text}\n")
    sys.stdout.flush()
