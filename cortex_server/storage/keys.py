"""What outlasts the gateway about keys: those made at run time, and what each used on each day."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

from cortex_common.config.access import KeyTerms
from cortex_common.errors import Unavailable
from cortex_common.schema.keys import UsageRow
from cortex_server.auth.keys import MadeKey
from cortex_server.auth.usage import Used
from cortex_server.storage.database import opened

_SCHEMA = """
create table if not exists keys (
    name text primary key, hash text not null unique, terms text not null, created real not null
);
create table if not exists usage (
    day text not null, key text not null, model text not null, requests integer not null, errors integer not null,
    tokens_in integer not null, tokens_out integer not null, primary key (day, key, model)
);
"""

_ADD = """
insert into usage values (?, ?, ?, ?, ?, ?, ?)
on conflict do update set
    requests = requests + excluded.requests, errors = errors + excluded.errors,
    tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out
"""

_READ = """
select day, key, model, requests, errors, tokens_in, tokens_out from usage
where day >= ? and day <= ? order by day, key, model
"""


class KeyStore:
    """Two tables of a SQLite file. Every call blocks for a disk; call it in a thread.

    Args:
        path: the file; None keeps everything in memory.

    Raises:
        ConfigError: it can't be used. Without its keys the gateway would serve its host to anybody there.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._db = opened(path, _SCHEMA, rebuildable=False)

    def made_keys(self) -> tuple[MadeKey, ...]:
        """The keys made at run time."""
        with self._lock:
            rows = self._db.execute("select name, hash, terms, created from keys").fetchall()
        return tuple(
            MadeKey(name, hashed, KeyTerms.model_validate_json(terms), created)
            for name, hashed, terms, created in rows
        )

    def add_key(self, key: MadeKey) -> None:
        """Keep a key.

        Raises:
            Unavailable: the file can't be written.
        """
        row = (key.name, key.hash, key.terms.model_dump_json(exclude_defaults=True), key.created)
        self._write("insert into keys values (?, ?, ?, ?)", row)

    def remove_key(self, name: str) -> None:
        """Forget a key.

        Raises:
            Unavailable: the file can't be written.
        """
        self._write("delete from keys where name = ?", (name,))

    def _write(self, statement: str, row: tuple[object, ...]) -> None:
        try:
            with self._lock, self._db:
                self._db.execute(statement, row)
        except sqlite3.Error as failed:
            raise Unavailable(
                f"keys can't be written down: {failed}",
                hints=("is there room on the disk of the gateway's state_dir?",),
            ) from failed

    def add_usage(self, day: str, used: Mapping[tuple[str, str], Used]) -> None:
        """Add to what was used on a day.

        Args:
            day: like 2026-11-23.
            used: by key and model.
        """
        rows = [
            (day, key, model, u.requests, u.errors, u.tokens_in, u.tokens_out)
            for (key, model), u in used.items()
        ]
        with self._lock, self._db:
            self._db.executemany(_ADD, rows)

    def usage(self, since: str, until: str) -> tuple[UsageRow, ...]:
        """What was used from one day to another, both included."""
        with self._lock:
            rows = self._db.execute(_READ, (since, until)).fetchall()
        return tuple(
            UsageRow(
                day=day,
                key=key,
                model=model,
                requests=requests,
                errors=errors,
                tokens_in=tokens_in,
                tokens_out=tokens_out,
            )
            for day, key, model, requests, errors, tokens_in, tokens_out in rows
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
