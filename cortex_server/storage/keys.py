"""API keys created at run time, and the daily usage of every key, in the gateway's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, Json, TypeAdapter
from typing_extensions import override

from cortex_common.schema.bounds import UnixSeconds
from cortex_common.schema.keys import KeyName, KeyTerms, Scope, UsageRow
from cortex_server.auth.key_service import KeyStorage
from cortex_server.auth.keys import RuntimeKey, hash_of, new_secret
from cortex_server.auth.usage import UsageCounts
from cortex_server.storage.database import Database, row_ignored, save_failed, valid_rows

_SCHEMA = """
create table if not exists keys (
    name text primary key, hash text not null unique, terms text not null, created real not null
);
create table if not exists usage (
    day text not null, key text not null, model text not null, requests integer not null, errors integer not null,
    tokens_in integer not null, tokens_out integer not null, primary key (day, key, model)
);
"""

_ADD_USAGE = """
insert into usage values (?, ?, ?, ?, ?, ?, ?)
on conflict do update set
    requests = requests + excluded.requests, errors = errors + excluded.errors,
    tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out
"""

_READ_USAGE = """
select day, key, model, requests, errors, tokens_in, tokens_out from usage
where day >= ? and day <= ? order by day, key, model
"""

_UNREADABLE = KeyTerms(scopes=tuple(Scope), expires=datetime(1970, 1, 1, tzinfo=UTC))
"""Terms of a key whose row can't be read: it opens nothing, but what it may have protected still needs a key."""

_Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_ROW = TypeAdapter(tuple[KeyName, _Hash, Json[KeyTerms], UnixSeconds])


class KeyStore(KeyStorage):
    """The tables `keys` and `usage`.

    Args:
        database: the gateway's database.

    Raises:
        ConfigError: the tables cannot be created.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        database.create_tables(_SCHEMA)

    @override
    def load_keys(self) -> tuple[RuntimeKey, ...]:
        read = "select name, hash, terms, created from keys"
        rows = self._database.run_blocking(lambda db: db.execute(read).fetchall())
        return tuple(map(_key, rows))

    @override
    async def add_key(self, key: RuntimeKey) -> None:
        row = (key.name, key.hash, key.terms.model_dump_json(exclude_defaults=True), key.created)
        await self._write("insert into keys values (?, ?, ?, ?)", [row])

    @override
    async def remove_key(self, name: str) -> None:
        await self._write("delete from keys where name = ?", [(name,)])

    @override
    async def add_usage(self, day: str, counts: Mapping[tuple[str, str], UsageCounts]) -> None:
        rows = [
            (day, key, model, c.requests, c.errors, c.tokens_in, c.tokens_out)
            for (key, model), c in counts.items()
        ]
        await self._write(_ADD_USAGE, rows)

    @override
    async def usage(self, since: str, until: str) -> tuple[UsageRow, ...]:
        def read(db: sqlite3.Connection) -> tuple[UsageRow, ...]:
            cursor = db.execute(_READ_USAGE, (since, until))
            columns = [column[0] for column in cursor.description]
            found = (dict(zip(columns, row, strict=True)) for row in cursor)
            return tuple(valid_rows("usage", found, UsageRow.model_validate))

        return await self._database.run(read)

    async def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            await self._database.run(lambda db: db.executemany(statement, rows))
        except sqlite3.Error as error:
            raise save_failed("keys and usage cannot be saved", error) from error


def _key(row: tuple[object, ...]) -> RuntimeKey:
    """Return the key of a row; if the row is damaged, an expired key that can be listed and revoked."""
    try:
        return RuntimeKey(*_ROW.validate_python(row))
    except ValueError as error:
        row_ignored("keys", error)
        return RuntimeKey(str(row[0]), hash_of(new_secret()), _UNREADABLE, 0.0)
