"""The audit log, requests and decisions in the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cortex_common.clock import SystemClock
from cortex_common.log import event
from cortex_common.schema.plans import DecisionView
from cortex_server.audit_log import MAX_ENTRIES, AuditLog
from cortex_server.lifecycle.decision_log import DecisionLog
from cortex_server.proxy.access_log import KEPT, AccessLog, RequestLine
from cortex_server.storage.database import Database
from cortex_server.storage.history import HistoryStore

DECISION = DecisionView(at=1.0, model="m", waited_s=2.0, instance="m-1", reason="most memory")
log = logging.getLogger("cortex.lifecycle")


class Run:
    """The logs of one run of a gateway, with their store."""

    def __init__(self, database: Database) -> None:
        self.audit_log = AuditLog(SystemClock())
        self.access_log = AccessLog(asyncio.get_running_loop())
        self.decision_log = DecisionLog()
        self.history = HistoryStore(database, self.audit_log, self.access_log, self.decision_log)
        self.history.restore()

    def record(self, number: int) -> None:
        """Record an event, a request, and the decision that it waited for."""
        self.audit_log.attach()
        event(log, "eviction_started", number=number)
        self.audit_log.detach()
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
        self.decision_log.add(f"r{number}", DECISION)


@contextlib.contextmanager
def started(path: Path) -> Iterator[Run]:
    """Run a gateway; its database is closed at the end, without a flush."""
    with closing(Database(path)) as database:
        yield Run(database)


async def test_history_outlives_the_gateway(tmp_path: Path):
    """The next run restores everything in order, continues the ids, and adds to the same tables."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as first:
        for number in range(3):
            first.record(number)
        await first.history.close()
    with started(path) as second:
        second.record(3)
        second.decision_log.add("r0", DECISION)
        await second.history.close()
    with started(path) as third:
        entries = third.audit_log.since(0)
        assert [e.fields["number"] for e in entries] == ["0", "1", "2", "3"]
        assert [e.id for e in entries] == sorted({e.id for e in entries})
        assert [line.request for line in third.access_log.last()] == ["r3", "r2", "r1", "r0"]
        assert [len(third.decision_log.for_request(f"r{n}")) for n in range(4)] == [2, 1, 1, 1]


async def test_the_tables_are_bounded(tmp_path: Path):
    """The tables never have more rows than the gateway keeps in memory."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as run:
        for _ in range(3):
            for number in range(KEPT):
                run.record(number)
            await run.history.flush()
    with closing(sqlite3.connect(path)) as db:
        counts = [
            db.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("audit", "requests", "decisions")
        ]
    assert counts == [MAX_ENTRIES, KEPT, KEPT]


async def test_a_flush_writes_what_is_new_once(tmp_path: Path):
    """A crash loses only what came after the last flush, and a second flush adds nothing."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as run, closing(sqlite3.connect(path)) as db:
        run.record(1)
        await run.history.flush()
        assert db.execute("select count(*) from requests").fetchall() == [(1,)]
        run.record(2)
        await run.history.flush()
        await run.history.flush()
        await run.history.close()
        assert db.execute("select count(*) from requests").fetchall() == [(2,)]


async def test_a_cancelled_flush_is_repeated_without_duplicates(tmp_path: Path):
    """The final flush writes the same rows again that a cancelled one was still writing."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as run:
        run.record(1)
        flush = asyncio.create_task(run.history.flush())
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        assert flush.cancelled()
        run.record(2)
        await run.history.close()
    with started(path) as run:
        assert [line.request for line in run.access_log.last()] == ["r2", "r1"]
        assert len(run.audit_log.since(0)) == 2


async def test_rows_of_another_version_are_skipped(tmp_path: Path):
    """Rows that can't be parsed do not prevent a start; the others are restored."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as run:
        run.record(1)
        await run.history.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("insert into requests (line) values ('{}')")
        db.execute("insert into audit values (7, '{')")
        db.execute("insert into decisions values ('x', '[{}]')")
    with started(path) as run:
        assert [line.request for line in run.access_log.last()] == ["r1"]
        assert len(run.audit_log.since(0)) == len(run.decision_log.for_request("r1")) == 1


async def test_a_full_disk_does_not_prevent_shutdown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """What can't be written is lost and logged; the file is closed nevertheless."""
    path = tmp_path / "cortex.sqlite"
    with started(path) as run:
        run.record(1)
        with closing(sqlite3.connect(path)) as other:
            other.execute("alter table audit rename to away")
        await run.history.close()
    assert "history_write_failed" in caplog.messages
    with pytest.raises(RuntimeError):  # the database takes no more work
        run.history.restore()


@pytest.mark.parametrize("table", ["audit", "requests", "decisions"])
@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"id": 1e999}', "9" * 5000, "null"], ids=range(5)
)
async def test_damaged_rows_are_skipped(tmp_path: Path, table: str, text: str):
    """The history starts without them, and can be written."""
    path = tmp_path / "a.sqlite"
    with started(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            f"insert into {table} values ({'1' if table != 'decisions' else repr('r')}, ?)", (text,)
        )
    with started(path) as run:
        await run.history.flush()
