"""Requests that wait for their model to be loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cortex_common.errors import Busy, CortexError, Unavailable
from cortex_common.schema.instances import ModelId
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.keep_alive import keep_alive_pause

log = logging.getLogger("cortex.requests")

_LOSS_REPORT_S = 3.0
"""How long a node takes at most to report that an engine has died. It notices at once, and reports every second."""

_MAX_LOADS = 3
"""Loads to wait for: an instance can be gone again before the waiting request gets to it, but not repeatedly."""


class ColdStart:
    """Waits for a ready instance from its creation until it is cancelled.

    Args:
        context: Shared state of the proxy.
        model: The model to wait for.
        ident: Id of the request.
        comment: Called repeatedly with one line on the load's progress; None to send none.
        ready: Called when an instance is ready.
        failed: Called instead when none will be.
        lost: Instance that has just been lost, which its node may not have reported yet.
        for_operator: Whether comments say what the load waits for, which can be other models.
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
        lost: Endpoint | None = None,
        for_operator: bool = True,
    ) -> None:
        self._context = context
        self._model = model
        self._ident = ident
        self._comment = comment
        self._ready = ready
        self._failed = failed
        self._lost = lost
        self._for_operator = for_operator
        self._timer: asyncio.TimerHandle | None = None
        self._comments = 0
        self._schedule_comment()
        self._task = context.loop.create_task(self._wait())

    def cancel(self) -> None:
        """Stop waiting; no callback is called any more."""
        self._task.cancel()
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _wait(self) -> None:
        try:
            await self._acquire()
        except CortexError as failed:
            self._cancel_timer()
            self._failed(failed)
        except Exception:
            log.exception("cold_start_failed")
            self._cancel_timer()
            self._failed(CortexError("the gateway failed; see its log"))
        else:
            self._cancel_timer()
            self._ready()

    async def _acquire(self) -> None:
        """Wait for a ready instance.

        Raises:
            Unavailable: The existing instances fail and are not used for now, or can't be reached.
            CortexError: The load failed; see `Loads.acquire`.
        """
        context = self._context
        model_config = context.fleet.model_config(self._model)
        if model_config is None:
            # Served by an external upstream or an attached engine: it can't be loaded from here.
            if context.fleet.resolve_model(self._model) is None:
                raise context.fleet.model_not_found(self._model)
            raise self._not_available()
        if self._lost is not None:
            await self._wait_for_report(self._lost)
        for _ in range(_MAX_LOADS):
            await context.loads.acquire(
                model_config,
                request_id=self._ident,
                timeout_s=context.settings.cold_start_timeout_s,
            )
            if context.fleet.ready(self._model):
                return
        raise self._not_available()

    async def _wait_for_report(self, lost: Endpoint) -> None:
        """Wait until a lost instance takes no requests any more, or its node still reports it as ready."""
        fleet = self._context.fleet
        changed = asyncio.Event()
        fleet.on_change(changed.set)
        try:
            async with asyncio.timeout(_LOSS_REPORT_S):
                while lost in fleet.ready(self._model):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            fleet.remove_listener(changed.set)

    def _not_available(self) -> CortexError:
        """Return the error for a model whose instances get no requests for now, with the reason and the time."""
        fleet = self._context.fleet
        paused = fleet.paused(self._model)
        if not paused:
            return Unavailable(
                f"the servers of {self._model!r} can't be reached",
                hints=["`cortex nodes ls` and `cortex ps` show the reason"],
                retry_after=5.0,
            )
        first = min(paused, key=fleet.pause_left_s)
        kind = Busy if first.breaker.cooling else Unavailable
        return kind(
            f"the instances of {self._model!r} get no requests for now: {first.breaker.reason}",
            hints=["`cortex ps` shows the reason"],
            retry_after=max(1.0, fleet.pause_left_s(first)),
        )

    def _schedule_comment(self) -> None:
        first_s = self._context.settings.cold_start_comment_after_s
        if first_s > 0 and self._comment is not None:
            pause_s = keep_alive_pause(first_s, self._comments)
            self._timer = self._context.loop.call_later(pause_s, self._send_comment)

    def _send_comment(self) -> None:
        assert self._comment is not None
        self._comments += 1
        self._comment(self._progress())
        self._schedule_comment()

    def _progress(self) -> bytes:
        load = self._context.loads.progress(self._model)
        if load is None:
            return b"waiting"
        node = f" on {load.node}" if load.node else ""
        place = f", position {load.position} in the queue" if load.position > 1 else ""
        eta = "" if load.eta_s is None else f", about {load.eta_s:.0f} s to go"
        reason = f": {load.reason}" if load.reason and self._for_operator else ""
        return f"{load.state}{node}{place}{eta}{reason}".encode()
