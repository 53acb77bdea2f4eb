"""The SQLite files of the gateway's state directory, opened."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

from cortex_common.errors import ConfigError
from cortex_common.log import event

log = logging.getLogger("cortex.store")

BUSY_S = 10.0
"""Seconds to wait for another writer of a file."""


def opened(path: Path | None, schema: str, *, rebuildable: bool) -> sqlite3.Connection:
    """A database with these tables, for one thread at a time.

    Args:
        path: the file; None keeps everything in memory.
        schema: what makes its tables, where they are missing.
        rebuildable: one that is damaged is put aside and begun anew, since use fills it again.

    Raises:
        ConfigError: it can't be used.
    """
    try:
        return _checked(path, schema)
    except sqlite3.Error as failed:
        # Its subclasses tell of the disk or of another version; the file itself may be sound then.
        if path is None or not rebuildable or type(failed) is not sqlite3.DatabaseError:
            raise _useless(path, failed) from failed
        aside = path.with_name(f"{path.name}.damaged")
        event(log, "state_damaged", logging.ERROR, file=path, kept=aside, reason=failed)
        for left in ("-wal", "-shm"):
            path.with_name(path.name + left).unlink(missing_ok=True)
        path.replace(aside)
    try:
        return _checked(path, schema)
    except sqlite3.Error as failed:
        raise _useless(path, failed) from failed


def _checked(path: Path | None, schema: str) -> sqlite3.Connection:
    if path is not None:
        with contextlib.suppress(OSError):  # what is wrong with it SQLite tells
            if not path.exists():
                _begin(path, schema)
            # SQLite takes an empty file for a new one.
            if not path.stat().st_size:
                raise sqlite3.DatabaseError("the file is empty, so what it held is lost")
    db = sqlite3.connect(path or ":memory:", timeout=BUSY_S, check_same_thread=False)
    try:
        db.execute("pragma journal_mode = wal")
        (found,) = db.execute("pragma quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        db.executescript(schema)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _begin(path: Path, schema: str) -> None:
    """Make the file, at its place only once it is whole: a start that is broken off must not look like a loss."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)  # who used what, and hashes of keys, are no matter of other users
    with contextlib.closing(sqlite3.connect(new)) as db:
        db.executescript(schema)
    new.replace(path)


def _useless(path: Path | None, failed: sqlite3.Error) -> ConfigError:
    return ConfigError(
        f"can't use {path}: {failed}",
        hints=("put a backup in its place, or move it away to begin anew without what it holds",),
    )
