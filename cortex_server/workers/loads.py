"""A worker's way to the conductor: models without a ready instance are asked for, and waited for."""

from __future__ import annotations

import asyncio
import itertools

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.workers.wire import Channel, Forget, Granted, HowFar, Obtain, ToWorker


class RemoteLoads:
    """See the module; this is the data plane's `Loads`.

    Args:
        channel: to the control process.
    """

    def __init__(self, channel: Channel[ToWorker]) -> None:
        self._channel = channel
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[InstanceId]] = {}
        self._progress: dict[str, HowFar] = {}

    async def acquire(
        self, model_config: ModelConfig, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """See `Loads`."""
        ask = next(self._numbers)
        answer: asyncio.Future[InstanceId] = asyncio.get_running_loop().create_future()
        self._answers[ask] = answer
        self._channel.send(Obtain(ask, model_config.id, request_id, timeout_s))
        try:
            return await answer
        finally:
            if self._answers.pop(ask, None) is not None:
                self._channel.send(Forget(ask))

    def progress(self, model_id: ModelId) -> HowFar | None:
        """See `Loads`; up to a second old."""
        return self._progress.get(model_id)

    def granted(self, told: Granted) -> None:
        """The control process has answered; whoever asked may have left meanwhile."""
        answer = self._answers.pop(told.ask, None)
        if answer is None or answer.done():
            return
        if told.failure is None:
            answer.set_result(InstanceId(told.instance))
        else:
            answer.set_exception(told.failure.error)

    def how_far(self, told: HowFar) -> None:
        """The control process says how far a load is."""
        self._progress[told.model] = told
