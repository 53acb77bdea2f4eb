"""The audit log, ended requests and placement decisions in the gateway's database, so that they outlive a restart."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter

from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.plans import DecisionView
from cortex_server import audit_log as audit_logs
from cortex_server.audit_log import AuditLog
from cortex_server.lifecycle import decision_log as decision_logs
from cortex_server.lifecycle.decision_log import DecisionLog
from cortex_server.proxy import access_log as access_logs
from cortex_server.proxy.access_log import AccessLog, Entry, RequestLine
from cortex_server.storage.database import Database, valid_rows

T = TypeVar("T")

log = logging.getLogger("cortex.store")

FLUSH_INTERVAL_S = 2.0
"""At most this much history is lost when the gateway crashes."""

_SCHEMA = """
create table if not exists audit (id integer primary key, entry text not null);
create table if not exists requests (id integer primary key, line text not null);
create table if not exists decisions (request text primary key, decisions text not null);
"""

_MAX_ROWS = (
    ("audit", audit_logs.MAX_ENTRIES),
    ("requests", access_logs.KEPT),
    ("decisions", decision_logs.MAX_REQUESTS),
)

_DECISIONS = TypeAdapter(tuple[DecisionView, ...])


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is new since the last flush.

    Attributes:
        first_id: row id of the first of `requests`.
    """

    audit: Sequence[AuditEntry]
    first_id: int
    requests: Sequence[Entry]
    decisions: Mapping[str, tuple[DecisionView, ...]]


class HistoryStore:
    """The tables `audit`, `requests` and `decisions`, with as many rows as the gateway keeps in memory.

    The logs do not know this store. It reads what is new in them every few seconds and writes that on the database's
    thread, so that neither a request nor a decision waits for a disk.

    Args:
        database: the gateway's database.
        audit_log: the log behind `audit`.
        access_log: the log behind `requests`.
        decision_log: the log behind `decisions`.

    Raises:
        ConfigError: the tables cannot be created.
    """

    def __init__(
        self,
        database: Database,
        audit_log: AuditLog,
        access_log: AccessLog,
        decision_log: DecisionLog,
    ) -> None:
        self._database = database
        self._audit_log = audit_log
        self._access_log = access_log
        self._decision_log = decision_log
        self._last_audit_id = 0
        self._last_request: Entry | None = None
        self._last_request_id = 0
        database.create_tables(_SCHEMA)

    def restore(self) -> None:
        """Fill the logs with what was saved before the restart; blocks.

        Raises:
            ConfigError: SQLite reports an error.
        """
        entries = self._fetch("select id, entry from audit order by id")
        self._audit_log.restore(
            e for _, e in _parsed("audit", entries, AuditEntry.model_validate_json)
        )
        self._last_audit_id = self._audit_log.last_id
        lines = self._fetch("select id, line from requests order by id")
        self._last_request_id = lines[-1][0] if lines else 0
        requests = self._access_log.entries
        parse_line = msgspec.json.Decoder(RequestLine).decode
        requests.extend(line for _, line in _parsed("requests", lines, parse_line))
        self._last_request = requests[-1] if requests else None
        decisions = self._fetch("select request, decisions from decisions order by rowid")
        self._decision_log.restore(dict(_parsed("decisions", decisions, _DECISIONS.validate_json)))

    async def run(self) -> None:
        """Flush every few seconds; runs until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
                failing = False
            except sqlite3.Error:
                if not failing:
                    log.exception("history_write_failed")
                failing = True

    async def flush(self) -> None:
        """Write what is new.

        Raises:
            sqlite3.Error: it cannot be written, for example because the disk is full; the next flush tries again.
        """
        batch = self._next_batch()
        if not (batch.audit or batch.requests or batch.decisions):
            return
        await self._database.run(lambda db: _write(db, batch))
        if batch.audit:
            self._last_audit_id = batch.audit[-1].id
        if batch.requests:
            self._last_request = batch.requests[-1]
            self._last_request_id += len(batch.requests)
        self._decision_log.mark_saved(batch.decisions)

    async def close(self) -> None:
        """Write the rest; a failure is logged."""
        # This can write a batch again that a cancelled `run` is still writing: the rows have the same ids.
        try:
            await self.flush()
        except sqlite3.Error:
            log.exception("history_write_failed")

    def _next_batch(self) -> _Batch:
        requests: list[Entry] = []
        for entry in reversed(self._access_log.entries):
            if entry is self._last_request:
                break
            requests.append(entry)
        return _Batch(
            audit=self._audit_log.since(self._last_audit_id),
            first_id=self._last_request_id + 1,
            requests=requests[::-1],
            decisions=self._decision_log.unsaved(),
        )

    def _fetch(self, query: str) -> list[tuple[Any, str]]:
        return self._database.run_blocking(lambda db: db.execute(query).fetchall())


def _write(db: sqlite3.Connection, batch: _Batch) -> None:
    """Write a batch and delete the oldest rows. Encoding happens here too, off the event loop."""
    encode = msgspec.json.Encoder().encode
    audit = valid_rows(
        "audit", batch.audit, lambda entry: (entry.id, entry.model_dump_json(exclude_defaults=True))
    )
    requests = valid_rows(
        "requests",
        enumerate(batch.requests, batch.first_id),
        lambda numbered: (numbered[0], encode(numbered[1].line()).decode()),
    )
    decisions = valid_rows(
        "decisions",
        batch.decisions.items(),
        lambda made: (made[0], _DECISIONS.dump_json(made[1]).decode()),
    )
    db.executemany("insert or replace into audit values (?, ?)", audit)
    db.executemany("insert or replace into requests values (?, ?)", requests)
    db.executemany("insert or replace into decisions values (?, ?)", decisions)
    for table, rows in _MAX_ROWS:
        oldest = f"select rowid from {table} order by rowid desc limit 1 offset {rows}"  # noqa: S608 - our names
        db.execute(f"delete from {table} where rowid <= ({oldest})")  # noqa: S608 - as above


def _parsed(
    table: str, rows: Iterable[tuple[Any, str]], parse: Callable[[str], T]
) -> Iterator[tuple[Any, T]]:
    """Yield the rows with their JSON parsed, without damaged ones and those of another version of cortex."""
    return valid_rows(table, rows, lambda row: (row[0], parse(row[1])))
