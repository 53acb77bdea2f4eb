"""The order in which engines start and stop on a device.

An engine that sizes itself by what is free on its device (vLLM, SGLang) measures wrongly, or fails, if another engine
allocates or frees memory there meanwhile. Where the driver can't attribute memory to processes, the size of an engine
is the difference of the device's use before and after its load, which is only meaningful if nothing else changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Turn:
    """A start or stop of an engine on some devices.

    Attributes:
        devices: indices of the devices.
        exclusive: nothing else can start or stop on them meanwhile.
        alone: nothing else started or stopped on them so far.
        started: it has not to wait any longer.
        ended: set once it is over.
    """

    devices: frozenset[int]
    exclusive: bool
    alone: bool = True
    started: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class DeviceOrder:
    """Turns on devices, in order of arrival where one of them is exclusive."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    @contextlib.asynccontextmanager
    async def turn(
        self, devices: Collection[int], *, exclusive: bool, wait_s: float | None = None
    ) -> AsyncIterator[Turn]:
        """Wait for earlier turns that exclude this one, or that it excludes; later ones wait until the block exits.

        Args:
            devices: indices of the devices.
            exclusive: nothing else can start or stop on them meanwhile.
            wait_s: seconds after which the block is entered in any case; None for no limit.
        """
        turn = Turn(frozenset(devices), exclusive)
        earlier = self._conflicting(turn.devices, exclusive=exclusive)
        self._turns.append(turn)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    for other in earlier:
                        await other.ended.wait()
            turn.started = True
            for other in self._turns:
                if other is not turn and other.started and other.devices & turn.devices:
                    turn.alone = other.alone = False
            yield turn
        finally:
            self._turns.remove(turn)
            turn.ended.set()

    def must_wait(self, devices: Collection[int], *, exclusive: bool) -> bool:
        """Return whether a turn on some devices would have to wait now."""
        return bool(self._conflicting(frozenset(devices), exclusive=exclusive))

    def _conflicting(self, devices: frozenset[int], *, exclusive: bool) -> list[Turn]:
        return [t for t in self._turns if t.devices & devices and (exclusive or t.exclusive)]
