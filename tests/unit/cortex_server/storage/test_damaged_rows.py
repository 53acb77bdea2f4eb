"""Rows of the database that are damaged are set aside, never fatal at start."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from cortex_common.config.access import KeyEntry
from cortex_common.schema.keys import CreateKeyRequest, KeyLimits, Scope
from cortex_server.auth.key_service import KeyService
from cortex_server.auth.keys import Keyring, hash_of
from cortex_server.auth.usage import UsageCounter
from cortex_server.storage.database import Database
from cortex_server.storage.keys import KeyStore
from cortex_server.storage.placement import PlacementStore

GOOD = ("good", hash_of("good"), "{}", 1.0)
HUGE = f'{{"limits": {{"requests_per_minute": 1{"0" * 400}}}}}'


def service(database: Database) -> KeyService:
    """Return a key service that uses the database."""
    return KeyService(Keyring(), UsageCounter(), KeyStore(database), ())


@pytest.mark.parametrize(
    "row",
    [
        ("bad", hash_of("bad"), HUGE, 1.0),
        ("bad", hash_of("bad"), "[" * 100_000, 1.0),
        ("bad", hash_of("bad"), '{"scopes": ["root"]}', 1.0),
        ("bad", hash_of("bad"), b"\xff", 1.0),
        ("bad", "md5:1", "{}", 1.0),
        ("bad", hash_of("bad"), "{}", "yesterday"),
        ("bad\n", hash_of("bad"), "{}", 1.0),
    ],
    ids=range(7),
)
def test_a_damaged_key_opens_nothing_and_still_protects(tmp_path: Path, row):
    """The gateway starts; the row is listed as an expired key, so that no scope is open because of it."""
    with contextlib.closing(Database(tmp_path / "a.sqlite")) as database:
        KeyStore(database)
        database.submit(
            lambda db: db.executemany("insert into keys values (?, ?, ?, ?)", [GOOD, row])
        ).result()
        listed = service(database).keys()
        keys = {key.name: key for key in listed}
    assert set(keys) == {"good", row[0]}
    assert keys["good"].expired is False
    assert keys[row[0]].expired is True
    assert set(keys[row[0]].scopes) == set(Scope)


async def test_a_damaged_key_can_be_revoked(tmp_path: Path):
    """`cortex keys revoke` removes the row."""
    with contextlib.closing(Database(tmp_path / "a.sqlite")) as database:
        KeyStore(database)
        row = ("bad", hash_of("bad"), HUGE, 1.0)
        database.submit(lambda db: db.execute("insert into keys values (?, ?, ?, ?)", row)).result()
        await service(database).revoke("bad")
        assert service(database).keys() == ()


async def test_a_key_that_cannot_be_applied_is_not_stored(tmp_path: Path):
    """Otherwise every later start would fail."""
    same = KeyEntry(name="a", hash=hash_of("a"))
    unusable = CreateKeyRequest.model_construct(
        **same.model_dump(exclude={"hash", "limits"}) | {"name": "b"},
        limits=KeyLimits.model_construct(requests_per_minute=10**400),
    )
    with contextlib.closing(Database(tmp_path / "a.sqlite")) as database:
        keys = service(database)
        with pytest.raises((ValueError, OverflowError)):
            await keys.create(unusable)
        assert keys.keys() == ()
        assert KeyStore(database).load_keys() == ()


@pytest.mark.parametrize("column", ["kind", "devices", "max_mb", "last_s", "at", "n"])
def test_damaged_measurements_and_directives_are_ignored(tmp_path: Path, column: str):
    """A model without measurement is measured again."""
    path = tmp_path / "a.sqlite"
    good = ("m", "w", *[None] * 4, "h", "cuda", 1, "H200", "b", "n", 1, 5, 5, 1.0, 1.0)
    with contextlib.closing(Database(path)) as database:
        PlacementStore(database)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"insert into measurements values ({', '.join('?' * 17)})", good)
        db.execute(f"insert into measurements values ({', '.join('?' * 17)})", ("bad", *good[1:]))
        db.execute(f"update measurements set {column} = 'x' where model = 'bad'")
        db.execute("insert into directives values ('n', 'pin', 'm', 0, '{\"kind\": \"pin\"}')")
        db.execute("insert into directives values ('n', 'pin', 'x', 0, '{\"until\": 1e999}')")
    with contextlib.closing(Database(path)) as database:
        store = PlacementStore(database)
        assert [m.key.model for m in store.measurements()] == ["m"]
        assert [node for node, _ in store.directives()] == ["n"]
