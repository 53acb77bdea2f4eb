"""What the gateway remembers of what happened outlasts it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cortex_common.clock import SystemClock
from cortex_common.log import event
from cortex_common.schema.plans import DecisionView
from cortex_server.audit_log import KEPT as TRAIL_KEPT
from cortex_server.audit_log import AuditLog
from cortex_server.lifecycle.decision_log import DecisionLog
from cortex_server.proxy.access_log import KEPT, AccessLog, RequestLine
from cortex_server.storage.history import HistoryStore

WAITED = DecisionView(at=1.0, model="m", waited_s=2.0, instance="m-1", why="most room")
log = logging.getLogger("cortex.lifecycle")


class Memory:
    """Everything that a gateway remembers, with the diary that goes with it."""

    def __init__(self, path: Path) -> None:
        self.audit_log = AuditLog(SystemClock())
        self.access_log = AccessLog(asyncio.get_running_loop())
        self.decisions = DecisionLog()
        self.history = HistoryStore(path, self.audit_log, self.access_log, self.decisions)
        self.history.recall()

    def happens(self, number: int) -> None:
        """An event, a request, and its wait."""
        self.audit_log.begin()
        event(log, "evicting", number=number)
        self.audit_log.end()
        line = RequestLine(
            ts=datetime.now(UTC),
            level="info",
            event="request_finished",
            logger="cortex.requests",
            request=f"r{number}",
            route="/v1",
            outcome="ok",
            total_latency_ms=1.0,
        )
        self.access_log.entries.append(line)
        self.decisions.keep(f"r{number}", WAITED)


async def test_events_requests_and_waits_outlast_the_gateway(tmp_path: Path):
    """A second gateway tells them in their order, numbers its own events after them, and goes on writing."""
    first = Memory(tmp_path / "story")
    for number in range(3):
        first.happens(number)
    first.history.close()
    second = Memory(tmp_path / "story")
    second.happens(3)
    second.decisions.keep("r0", WAITED)
    second.history.close()
    third = Memory(tmp_path / "story")
    entries = third.audit_log.since(0)
    assert [e.facts["number"] for e in entries] == ["0", "1", "2", "3"]
    assert [e.id for e in entries] == sorted({e.id for e in entries})
    assert [line.request for line in third.access_log.last()] == ["r3", "r2", "r1", "r0"]
    assert [len(third.decisions.of(f"r{n}")) for n in range(4)] == [2, 1, 1, 1]
    third.history.close()


async def test_the_file_has_a_bound(tmp_path: Path):
    """However many requests there were, no more are kept than the gateway remembers."""
    memory = Memory(tmp_path / "story")
    for _ in range(3):
        for number in range(KEPT):
            memory.happens(number)
        await memory.history.write()
    memory.history.close()
    with sqlite3.connect(tmp_path / "story") as db:
        counts = [
            db.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("trail", "requests", "waits")
        ]
    assert counts == [TRAIL_KEPT, KEPT, KEPT]


async def test_what_is_written_while_it_runs_is_written_once(tmp_path: Path):
    """A crash loses only what came after the last writing, and a second writing adds nothing."""
    memory = Memory(tmp_path / "story")
    memory.happens(1)
    await memory.history.write()
    with sqlite3.connect(tmp_path / "story") as db:
        assert db.execute("select count(*) from requests").fetchall() == [(1,)]
    memory.happens(2)
    await memory.history.write()
    await memory.history.write()
    memory.history.close()
    with sqlite3.connect(tmp_path / "story") as db:
        assert db.execute("select count(*) from requests").fetchall() == [(2,)]


async def test_what_another_version_wrote_is_passed_over(tmp_path: Path):
    """Rows that can't be understood keep no gateway from starting; the others are there."""
    memory = Memory(tmp_path / "story")
    memory.happens(1)
    memory.history.close()
    with sqlite3.connect(tmp_path / "story") as db:
        db.execute("insert into requests (line) values ('{}')")
        db.execute("insert into trail values (7, '{')")
        db.execute("insert into waits values ('x', '[{}]')")
    second = Memory(tmp_path / "story")
    assert [line.request for line in second.access_log.last()] == ["r1"]
    assert len(second.audit_log.since(0)) == len(second.decisions.of("r1")) == 1
    second.history.close()


async def test_a_full_disk_keeps_no_gateway_from_its_end(tmp_path: Path):
    """What can't be written is lost, with a line in the log; the file is closed all the same."""
    memory = Memory(tmp_path / "story")
    memory.happens(1)
    with closing(sqlite3.connect(tmp_path / "story")) as other:
        other.execute("alter table trail rename to away")
    memory.history.close()
    with pytest.raises(sqlite3.ProgrammingError):
        memory.history.recall()
