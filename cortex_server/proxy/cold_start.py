"""A request that waits for its model to be loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cortex_common.errors import CortexError, Unavailable
from cortex_common.schema.instances import ModelId

if TYPE_CHECKING:
    from cortex_server.proxy.context import ProxyContext

log = logging.getLogger("cortex.requests")

_MOST_ROUNDS = 3
"""A load can be undone before its waiter gets to it; more often than that in a row, something is wrong."""


class ColdStart:
    """Waits from its making on, until it is over or cancelled.

    Args:
        plane: what all requests share.
        model: that is waited for.
        ident: of the request.
        comment: called with one line on how far the load is, first after a while and then again and again.
        ready: called when an instance takes requests.
        failed: called instead when there will be none.
    """

    def __init__(
        self,
        context: ProxyContext,
        model: ModelId,
        ident: str,
        *,
        comment: Callable[[bytes], None] | None,
        ready: Callable[[], None],
        failed: Callable[[CortexError], None],
    ) -> None:
        self._context = context
        self._model = model
        self._ident = ident
        self._comment = comment
        self._ready = ready
        self._failed = failed
        self._timer: asyncio.TimerHandle | None = None
        self._comment_later()
        self._task = context.loop.create_task(self._wait())

    def cancel(self) -> None:
        """Wait no longer; nothing is called any more."""
        self._task.cancel()
        self._over()

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _wait(self) -> None:
        try:
            await self._obtain()
        except CortexError as failed:
            self._over()
            self._failed(failed)
        except Exception:
            log.exception("waiting_failed")
            self._over()
            self._failed(CortexError("the gateway failed; its log says how"))
        else:
            self._over()
            self._ready()

    async def _obtain(self) -> None:
        """Wait for an instance that takes requests.

        Raises:
            Unavailable: the instances that there are fail, and are left alone for now, or are out of reach.
            CortexError: as `Loads.obtain`.
        """
        context = self._context
        model_config = context.fleet.model_config(self._model)
        if model_config is None:
            # Somebody else's, which nobody here can load.
            if context.fleet.known(self._model) is None:
                raise context.fleet.unknown(self._model)
            raise Unavailable(
                f"what serves {self._model!r} fails or can't be reached",
                hints=["cortex nodes ls and cortex ps show how"],
                retry_after=5.0,
            )
        for _ in range(_MOST_ROUNDS):
            await context.loads.acquire(
                model_config,
                request_id=self._ident,
                timeout_s=context.settings.cold_start_timeout_s,
            )
            if context.fleet.ready(self._model):
                return
        raise Unavailable(
            f"the instances of {self._model!r} keep failing and are left alone for now",
            hints=["cortex ps shows how they fail"],
            retry_after=5.0,
        )

    def _comment_later(self) -> None:
        seconds = self._context.settings.cold_start_comment_after_s
        if seconds > 0 and self._comment is not None:
            self._timer = self._context.loop.call_later(seconds, self._say_how_far)

    def _say_how_far(self) -> None:
        assert self._comment is not None
        self._comment(self._how_far())
        self._comment_later()

    def _how_far(self) -> bytes:
        told = self._context.loads.progress(self._model)
        if told is None:
            return b"waiting"
        node = f" on {told.node}" if told.node else ""
        place = f", position {told.position} in the queue" if told.position > 1 else ""
        eta = "" if told.eta_s is None else f", about {told.eta_s:.0f} s to go"
        why = f": {told.why}" if told.why else ""
        return f"{told.state}{node}{place}{eta}{why}".encode()
