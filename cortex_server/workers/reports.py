"""What a worker tells of its requests: collected on the hot path, sent fifty times a second at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.metrics.series import Histogram
from cortex_server.proxy import access_log as traces
from cortex_server.proxy.access_log import RequestRecord
from cortex_server.proxy.accounting import record_outcome
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.load_balancer import MOST_SESSIONS, Affinity
from cortex_server.proxy.response import EngineResponse
from cortex_server.workers.table import SharedTarget, Table
from cortex_server.workers.wire import Channel, Counts, Ended, Pulse, Report, ToWorker

REPORT_S = 0.02
"""By how much what others know of this worker's requests is late."""

PULSE_S = 1.0


class Homes(Affinity):
    """Where sessions went, of all workers: what is new here is told, what is new elsewhere is heard.

    The names are hashes, so the workers of one gateway are started with one hash seed.
    """

    def __init__(self) -> None:
        super().__init__(MOST_SESSIONS)
        self.new: dict[int, str] = {}

    def remember(self, names: Sequence[int], instance: InstanceId) -> None:
        """See `Affinity`."""
        for name in names:
            if self._seen.get(name) != instance:
                self.new[name] = instance
        super().remember(names, instance)

    def heard(self, homes: dict[int, str]) -> None:
        """Other workers' sessions went there."""
        for name, instance in homes.items():
            super().remember((name,), InstanceId(instance))


class Reporter:
    """See the module.

    Args:
        channel: to the control process.
        table: whose targets' requests are told.
        loop: whose timer sends.

    Attributes:
        homes: of the sessions.
        plane: whose requests these are; set once there is one.
    """

    def __init__(
        self, channel: Channel[ToWorker], table: Table, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.homes = Homes()
        self.context: ProxyContext | None = None
        self._channel = channel
        self._table = table
        self._loop = loop
        self._ended: list[Ended] = []
        self._timer: asyncio.TimerHandle | None = None
        table.on_touch = self.soon

    def settle(
        self,
        context: ProxyContext,
        record: RequestRecord,
        now: float,
        *,
        key: Key | None,
        model: ModelId,
        endpoint: Endpoint | None,
        answer: EngineResponse | None,
        error: str | None,
    ) -> None:
        """See `settlement.settle`: limits and verdicts here, the books in the control process."""
        if endpoint is not None:
            context.fleet.release(endpoint)
            record_outcome(context.fleet, endpoint, record.status, error)
        tokens_in, tokens_out, cached = answer.counted() if answer is not None else (0, 0, 0)
        if key is not None:
            context.access_control.leave(
                key, model, tokens_in, tokens_out, failed=error is not None
            )
        name = key.name if key else record.turned_away
        over = traces.FinishedRequest(
            record, now, time.time(), name, model, endpoint, tokens_in, tokens_out, error
        )
        line = over.line()
        ended = Ended(
            line=line,
            endpoint=endpoint.number if isinstance(endpoint, SharedTarget) else None,
            seconds=now - record.started,
            first=record.first_s,
            queued=record.queued_s,
            cached=cached,
            engine=endpoint.engine if endpoint is not None else "",
            repairs=dict(answer.repairs) if answer is not None and answer.repairs else {},
        )
        self._ended.append(ended)
        self.soon()
        context.access_log.entries.append(line)
        if context.spans is not None and record.span is not None:
            context.spans.ended(record.span, line, record.started, now)

    def soon(self) -> None:
        """There is something to tell."""
        if self._timer is None:
            self._timer = self._loop.call_later(REPORT_S, self.send)

    def send(self) -> None:
        """Tell it now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        context, touched = self.context, self._table.touched
        flights = tuple((t.number, t.mine, t.most) for t in touched)
        for endpoint in touched:
            endpoint.most = endpoint.mine
        active = len(context.active) if context is not None else 0
        self._channel.send(Report(flights, tuple(self._ended), self.homes.new, active))
        touched.clear()
        self._ended.clear()
        self.homes.new = {}

    async def pulse(self) -> None:
        """Say that it lives, and how the loop does, until cancelled."""
        while True:
            await asyncio.sleep(PULSE_S)
            assert self.context is not None
            metrics = self.context.metrics
            self._channel.send(Pulse(_taken(metrics.overhead), _taken(metrics.lag)))


def _taken(histogram: Histogram) -> Counts:
    counts, total = histogram.taken()
    return Counts(counts, total)
