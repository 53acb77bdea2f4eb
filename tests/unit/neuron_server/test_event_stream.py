"""Subscribers of /events: reconnects, slow subscribers and the event log."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.clock import ManualClock
from cortex_common.schema.hardware import Health
from cortex_common.schema.instances import NodeStatus
from neuron_server.event_log import ChangeCounter, EventLog
from neuron_server.event_stream import StatusEvents, parse_last_entry

STATUS = NodeStatus(health=Health(uptime_secs=1.0))


def stream(changes: ChangeCounter, events: EventLog, send_timeout_s: float = 10.0) -> StatusEvents:
    """Return the response to a subscriber, with a runtime that has only what it needs."""
    runtime = SimpleNamespace(changes=changes, events=events, status=lambda _: STATUS)
    return StatusEvents(runtime, lambda _: "", None, send_timeout_s)


async def stay_connected() -> dict[str, object]:
    """Receive nothing, like a subscriber that stays connected."""
    await asyncio.Event().wait()
    raise AssertionError


@given(st.text() | st.none(), st.integers(0, 300))
def test_any_last_event_id_is_accepted(last_event_id, last):
    """Any value results in a number between 0 and the latest."""
    assert 0 <= parse_last_entry(last_event_id, last) <= last


@pytest.mark.parametrize(
    ("sent", "last_entry"), [("9.3", 3), ("9.7", 5), ("9", 5), (None, 5), ("x.-1", 5)]
)
def test_a_subscriber_resumes_after_its_last_entry(sent, last_entry):
    """The second number counts; new subscribers, and those of another neuron process, start after the latest entry."""
    assert parse_last_entry(sent, 5) == last_entry


async def test_a_subscriber_that_accepts_nothing_is_disconnected():
    """An event that can't be sent in time ends the stream."""
    changes = ChangeCounter()
    sent: list[object] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    response = stream(changes, EventLog(ManualClock(), changes), send_timeout_s=0.05)
    async with asyncio.timeout(60):
        await response({"type": "http"}, stay_connected, send)
    assert len(sent) == 2


async def test_changes_during_a_send_are_merged_into_one_message():
    """Nothing is queued: the next message has the latest status and all new entries."""
    changes = ChangeCounter()
    events = EventLog(ManualClock(), changes)
    bodies: list[bytes] = []

    async def send(message: dict[str, object]) -> None:
        if message["type"] != "http.response.body":
            return
        bodies.append(message["body"])
        if len(bodies) == 1:
            for number in range(5):
                events.record(f"entry_{number}")
        elif len(bodies) == 2:
            changes.close()

    async with asyncio.timeout(60):
        await stream(changes, events)({"type": "http"}, stay_connected, send)
    first, second, third, last = bodies
    assert first.count(b"event: status") == 1
    assert second.count(b"event: status") == 1
    assert [f"entry_{n}".encode() in second for n in range(5)] == [True] * 5
    assert third.count(b"event: status") == 1
    assert last == b""


async def test_subscriptions_yield_none_while_idle_and_end_when_closed():
    """A subscription yields None without changes, and ends after the last change once the counter is closed."""
    changes = ChangeCounter()
    subscription = changes.subscribe(0.01)
    assert await anext(subscription) == 0
    assert await anext(subscription) is None
    changes.increment()
    assert await anext(subscription) == 1
    changes.close()
    assert await anext(subscription) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


def test_the_event_log_is_bounded():
    """Only the latest entries are kept, with their original numbers."""
    changes = ChangeCounter()
    events = EventLog(ManualClock(unix=5.0), changes)
    for number in range(1000):
        events.record("event", instance=number, nothing=None)
    kept = list(events.since(0))
    assert len(kept) == 256
    assert kept[-1][0] == events.last_number == 1000
    assert kept[-1][1].fields == {"instance": "999"}
    assert list(events.since(1000)) == []
