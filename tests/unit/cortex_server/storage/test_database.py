"""The SQLite database of a gateway."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from cortex_common.errors import ConfigError
from cortex_common.net.state_dir import mount_point
from cortex_server.storage.database import FILE_NAME, Database, database_path
from cortex_server.storage.keys import KeyStore

TABLE = "create table if not exists words (word text)"


def insert(word: str):
    """Return work that adds a row."""
    return lambda db: db.execute("insert into words values (?)", (word,)) and None


def test_files_are_readable_by_their_owner_only(tmp_path: Path):
    """Neither the database nor the files that SQLite creates beside it can be read by other users."""
    with contextlib.closing(Database(tmp_path / "a.sqlite")) as database:
        database.create_tables(TABLE)
        database.submit(insert("x")).result()
        assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_work_runs_in_order_and_in_transactions(tmp_path: Path):
    """Failed work is rolled back and reported to its caller; work after it is not affected."""

    def fail(db: sqlite3.Connection) -> None:
        db.execute("insert into words values ('lost')")
        db.execute("insert into nowhere values (1)")

    database = Database(tmp_path / "a.sqlite")
    database.create_tables(TABLE)
    database.submit(insert("a"))
    failed = database.submit(fail)
    database.submit(insert("b"))
    database.close()
    assert isinstance(failed.exception(), sqlite3.OperationalError)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as other:
        assert other.execute("select word from words").fetchall() == [("a",), ("b",)]


def test_work_is_completed_on_close(tmp_path: Path):
    """Closing waits for everything that was submitted."""
    database = Database(tmp_path / "a.sqlite")
    database.create_tables(TABLE)
    for number in range(100):
        database.submit(insert(str(number)))
    database.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as other:
        assert other.execute("select count(*) from words").fetchall() == [(100,)]


def test_a_file_that_cannot_be_created_is_named(tmp_path: Path):
    """The error names the file if its directory is missing."""
    with pytest.raises(ConfigError, match=r"can't use .*/nowhere/a\.sqlite: unable to open"):
        Database(tmp_path / "nowhere" / "a.sqlite")


def test_an_unusable_state_directory_is_a_config_error(tmp_path: Path):
    """The error for a path that is not a directory names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't use") as caught:
        database_path(tmp_path / "file" / "state", {})
    assert "state_dir" in caught.value.hints[0]


def test_the_state_directory_of_systemd_is_used(tmp_path: Path):
    """The setting wins over STATE_DIRECTORY; without either there is no file."""
    environ = {"STATE_DIRECTORY": str(tmp_path / "unit")}
    assert database_path(None, environ) == tmp_path / "unit" / FILE_NAME
    assert database_path(tmp_path / "set", environ) == tmp_path / "set" / FILE_NAME
    assert database_path(None, {}) is None


def test_an_interrupted_first_start_is_not_a_loss(tmp_path: Path):
    """The next start ignores the temporary file, however far it got."""
    path = tmp_path / "cortex.sqlite"
    for leftover in (b"", b"SQLite format 3\0"):
        (tmp_path / "cortex.sqlite.new").write_bytes(leftover)
        with contextlib.closing(Database(path)) as database:
            KeyStore(database)
        assert [file.name for file in tmp_path.iterdir()] == ["cortex.sqlite"]
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "empty"])
def test_a_damaged_file_is_never_replaced(tmp_path: Path, damage: str):
    """Without its keys a gateway would accept every request from its own host, so it does not start."""
    path = tmp_path / "cortex.sqlite"
    with contextlib.closing(Database(path)) as database:
        KeyStore(database)
    damaged = {"overwritten": b"x" * 9000, "truncated": path.read_bytes()[:5000], "empty": b""}
    path.write_bytes(damaged[damage])
    said = {
        "overwritten": "file is not a database",
        "truncated": "malformed",
        "empty": "the file is empty",
    }
    with pytest.raises(ConfigError, match=rf"cortex\.sqlite: .*{said[damage]}") as caught:
        Database(path)
    assert "backup" in caught.value.hints[0]
    assert path.read_bytes() == damaged[damage]


async def test_a_full_disk_is_reported_until_a_write_succeeds(tmp_path: Path) -> None:
    """Failed writes are counted, and named with their file system, until there is room again."""
    path = tmp_path / "cortex.sqlite"
    with contextlib.closing(Database(path)) as database:
        database.create_tables("create table t (v text)")
        assert database.warnings() == ()
        await database.run(lambda db: db.execute("pragma max_page_count = 2").fetchall())
        with pytest.raises(sqlite3.OperationalError, match="full"):
            await database.run(lambda db: db.execute("insert into t values (?)", ["x" * 20_000]))
        assert await database.run(lambda db: db.execute("select count(*) from t").fetchall()) == [
            (0,)
        ]
        (warning,) = database.warnings()
        assert f"{path} can't be written: database or disk is full" in warning
        assert f"mounted at {mount_point(path)}" in warning
        assert database.write_failures == 1
        await database.run(lambda db: db.execute("pragma max_page_count = 100000").fetchall())
        await database.run(lambda db: db.execute("insert into t values ('y')"))
        assert database.warnings() == ()


def test_no_file_is_mapped_into_memory(tmp_path: Path) -> None:
    """An access to a mapped file on a full or frozen disk would kill the gateway."""
    with contextlib.closing(Database(tmp_path / "cortex.sqlite")) as database:
        database.create_tables("create table t (v text)")
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert str(tmp_path) not in maps
        assert not list(tmp_path.glob("*-shm"))
