"""The queue that admits requests."""

from __future__ import annotations

import asyncio

import pytest

from cortex_common.config.access import LimitsSection
from cortex_common.errors import Busy
from cortex_common.schema.keys import KeyTerms
from cortex_server.auth.admission_queue import FairQueue
from cortex_server.auth.keys import Key, hash_of


class Waiter:
    """A request in the queue, which logs its name once it is admitted, or "-" and its name on a timeout."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def on_admitted(self) -> None:
        self.log.append(self.name)

    def on_queue_timeout(self) -> None:
        self.log.append(f"-{self.name}")


def key_of(name: str, **terms: object) -> Key:
    """Return a key to queue with."""
    return Key(name, hash_of(name), KeyTerms.model_validate(terms))


async def admission_order(*requests: tuple[Key, int]) -> str:
    """Return the names of the keys in the order in which their requests are admitted, one at a time."""
    log: list[str] = []
    queue = FairQueue(asyncio.get_running_loop(), LimitsSection(max_in_flight=1))
    first = Waiter("first", log)
    assert queue.enter(first, key_of("z"), 0)
    for key, priority in requests:
        assert not queue.enter(Waiter(key.name, log), key, priority)
    queue.leave(first)
    while queue.queued or len(log) < len(requests):
        await asyncio.sleep(0)
        for waiter in tuple(queue._admitted):
            queue.leave(waiter)
    return "".join(log)


async def test_a_key_that_floods_the_queue_delays_another_by_one_position():
    """Keys take turns."""
    a, b = key_of("a"), key_of("b")
    assert (await admission_order(*[(a, 0)] * 5, (b, 0), (b, 0))).startswith("ab")


async def test_weights_are_shares():
    """A key with weight 3 is admitted three times as often."""
    a, b = key_of("a", weight=3), key_of("b")
    order = await admission_order(*[(a, 0)] * 9, *[(b, 0)] * 9)
    assert order[:8].count("a") == 6


async def test_priority_is_capped_by_the_key():
    """A priority above the key's maximum has no effect."""
    a, b = key_of("a"), key_of("b", max_priority=2)
    assert await admission_order((a, 9), (a, 9), (b, 2)) == "baa"


async def test_a_request_that_left_the_queue_is_not_admitted():
    """The next one is admitted in its place."""
    log: list[str] = []
    queue = FairQueue(asyncio.get_running_loop(), LimitsSection(max_in_flight=1))
    first, second, third = (Waiter(n, log) for n in ("1", "2", "3"))
    key = key_of("a")
    queue.enter(first, key, 0)
    queue.enter(second, key, 0)
    queue.enter(third, key, 0)
    queue.leave(second)
    queue.leave(first)
    await asyncio.sleep(0)
    assert log == ["3"]


async def test_the_queue_is_bounded_in_length_and_time():
    """A request that finds the queue full is rejected immediately; one that waits too long times out."""
    log: list[str] = []
    limits = LimitsSection(max_in_flight=1, max_queued=1, queue_timeout_s=0.01)
    queue = FairQueue(asyncio.get_running_loop(), limits)
    key = key_of("a")
    queue.enter(Waiter("1", log), key, 0)
    queue.enter(Waiter("2", log), key, 0)
    with pytest.raises(Busy):
        queue.enter(Waiter("3", log), key, 0)
    async with asyncio.timeout(5):
        while not log:
            await asyncio.sleep(0.001)
    assert log == ["-2"]
    assert queue.queued == 0
