"""Readers of /events: how they come back, and what happens to slow ones."""

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
    """The response to one reader of a runtime that has only what a reader needs."""
    runtime = SimpleNamespace(changes=changes, events=events, status=lambda _: STATUS)
    return StatusEvents(runtime, lambda _: "", None, send_timeout_s)


async def never() -> dict[str, object]:
    """A reader that stays."""
    await asyncio.Event().wait()
    raise AssertionError


@given(st.text() | st.none(), st.integers(0, 300))
def test_any_last_event_id_is_taken(last_event_id, last):
    """Whatever a reader sends, it begins at a number that exists."""
    assert 0 <= parse_last_entry(last_event_id, last) <= last


@pytest.mark.parametrize(
    ("sent", "begin"), [("9.3", 3), ("9.7", 5), ("9", 5), (None, 5), ("x.-1", 5)]
)
def test_a_reader_resumes_where_it_was(sent, begin):
    """The second number counts; a new reader, or one of another neuron, begins with what comes."""
    assert parse_last_entry(sent, 5) == begin


async def test_a_reader_that_takes_nothing_is_cut():
    """An event that can't be sent in time ends the stream, and the node goes on."""
    changes = ChangeCounter()
    sent: list[object] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    response = stream(changes, EventLog(ManualClock(), changes), send_timeout_s=0.05)
    async with asyncio.timeout(5):
        await response({"type": "http"}, never, send)
    assert len(sent) == 2


async def test_changes_while_a_reader_is_busy_are_one_message():
    """Nothing is queued: after a slow event the latest status and all new entries come in one message."""
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

    async with asyncio.timeout(5):
        await stream(changes, events)({"type": "http"}, never, send)
    first, second, third, last = bodies
    assert first.count(b"event: status") == 1
    assert second.count(b"event: status") == 1
    assert [f"entry_{n}".encode() in second for n in range(5)] == [True] * 5
    assert third.count(b"event: status") == 1
    assert last == b""


async def test_silence_is_filled_and_the_end_ends():
    """Without news a reader of changes gets None; at the neuron's end it hears of that, and is let go."""
    changes = ChangeCounter()
    reader = changes.subscribe(0.01)
    assert await anext(reader) == 0
    assert await anext(reader) is None
    changes.increment()
    assert await anext(reader) == 1
    changes.close()
    assert await anext(reader) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


def test_the_journal_is_bounded():
    """Only the latest entries are kept, under their own numbers."""
    changes = ChangeCounter()
    events = EventLog(ManualClock(unix=5.0), changes)
    for number in range(1000):
        events.record("event", instance=number, nothing=None)
    kept = list(events.since(0))
    assert len(kept) == 256
    assert kept[-1][0] == events.last_number == 1000
    assert kept[-1][1].facts == {"instance": "999"}
    assert list(events.since(1000)) == []
