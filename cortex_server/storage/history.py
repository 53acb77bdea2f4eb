"""What happened, written down now and then, so that it can be told after a restart: see `HistoryStore`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter

from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.plans import DecisionView
from cortex_server import audit_log as trails
from cortex_server.audit_log import AuditLog
from cortex_server.lifecycle import decision_log as waits
from cortex_server.lifecycle.decision_log import DecisionLog
from cortex_server.proxy import access_log as journals
from cortex_server.proxy.access_log import AccessLog, Entry, RequestLine
from cortex_server.storage.database import opened

T = TypeVar("T")

log = logging.getLogger("cortex.store")

WRITE_EVERY_S = 2.0
"""What a crash of the gateway may lose."""

_SCHEMA = """
create table if not exists trail (id integer primary key, entry text not null);
create table if not exists requests (id integer primary key, line text not null);
create table if not exists waits (request text primary key, decisions text not null);
"""

_PRUNE = (
    ("trail", trails.KEPT),
    ("requests", journals.KEPT),
    ("waits", waits.KEPT),
)

_DECISIONS = TypeAdapter(tuple[DecisionView, ...])


@dataclass(frozen=True, slots=True)
class _Page:
    """What is new since the last time that something was written; the first line's number is `first`."""

    entries: Sequence[AuditEntry]
    first: int
    requests: Sequence[Entry]
    waits: Mapping[str, tuple[DecisionView, ...]]


class HistoryStore:
    """A SQLite file with as much of the trail, of ended requests and of what they waited for as the gateway remembers.

    Those who remember know nothing of it. Every few seconds it looks at what is new there and writes that in a thread,
    so that neither a request nor a decision waits for a disk; of more requests than are remembered the last are kept.

    Args:
        path: the file.
        trail, journal, decisions: who remember.

    Raises:
        ConfigError: it can't be used.
    """

    def __init__(
        self, path: Path, audit_log: AuditLog, access_log: AccessLog, decisions: DecisionLog
    ) -> None:
        self._lock = threading.Lock()
        self._db = opened(path, _SCHEMA, rebuildable=True)
        self._audit_log = audit_log
        self._access_log = access_log
        self._decisions = decisions
        self._noted = 0
        self._written_to: Entry | None = None
        self._lines = 0

    def recall(self) -> None:
        """Remind them of what was written down before."""
        entries = self._db.execute("select null, entry from trail order by id")
        self._audit_log.recall(e for _, e in _understood(entries, AuditEntry.model_validate_json))
        self._noted = self._audit_log.last
        lines = self._db.execute("select null, line from requests order by id")
        read_line = msgspec.json.Decoder(RequestLine).decode
        kept = self._access_log.entries
        kept.extend(line for _, line in _understood(lines, read_line))
        self._written_to = kept[-1] if kept else None
        self._lines = self._db.execute("select max(id) from requests").fetchone()[0] or 0
        waits = self._db.execute("select request, decisions from waits order by rowid")
        self._decisions.recall(dict(_understood(waits, _DECISIONS.validate_json)))

    async def run(self) -> None:
        """Write every few seconds; runs until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.write()
                failing = False
            except sqlite3.Error:
                if not failing:
                    log.exception("diary_not_written")
                failing = True

    async def write(self) -> None:
        """Write what is new.

        Raises:
            sqlite3.Error: the disk is full, say; the next time tries again.
        """
        page = self._page()
        await asyncio.to_thread(self._write, page)
        self._written(page)

    def close(self) -> None:
        """Write the rest and close the file."""
        # Perhaps once more what a thread is just writing: everything has its number, so that changes nothing.
        try:
            self._write(self._page())
        except sqlite3.Error:
            log.exception("diary_not_written")
        self._db.close()

    def _page(self) -> _Page:
        over: list[Entry] = []
        for entry in reversed(self._access_log.entries):
            if entry is self._written_to:
                break
            over.append(entry)
        entries = self._audit_log.since(self._noted)
        return _Page(entries, self._lines + 1, over[::-1], self._decisions.fresh())

    def _written(self, page: _Page) -> None:
        if page.entries:
            self._noted = page.entries[-1].id
        if page.requests:
            self._written_to = page.requests[-1]
            self._lines += len(page.requests)
        self._decisions.kept(page.waits)

    def _write(self, page: _Page) -> None:
        if not (page.entries or page.requests or page.waits):
            return
        encode = msgspec.json.Encoder().encode
        entries = [(e.id, e.model_dump_json(exclude_defaults=True)) for e in page.entries]
        over = enumerate(page.requests, page.first)
        lines = [(n, encode(entry.line()).decode()) for n, entry in over]
        decisions = [(name, _DECISIONS.dump_json(d).decode()) for name, d in page.waits.items()]
        with self._lock, self._db:
            self._db.executemany("insert or replace into trail values (?, ?)", entries)
            self._db.executemany("insert or replace into requests values (?, ?)", lines)
            self._db.executemany("insert or replace into waits values (?, ?)", decisions)
            for table, kept in _PRUNE:
                oldest = f"select rowid from {table} order by rowid desc limit 1 offset {kept}"  # noqa: S608 - our names
                self._db.execute(f"delete from {table} where rowid <= ({oldest})")  # noqa: S608 - as above


def _understood(
    rows: Iterable[tuple[Any, str]], read: Callable[[str], T]
) -> Iterator[tuple[Any, T]]:
    """The rows with their texts read; what another version of cortex wrote in another way is passed over."""
    for name, text in rows:
        with contextlib.suppress(ValueError):
            yield name, read(text)
