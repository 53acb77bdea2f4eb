"""The gateway's SQLite database: one file in state_dir, one connection, one thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from cortex_common.errors import ConfigError, Unavailable
from cortex_common.log import event
from cortex_common.net.state_dir import describe_write_failure, state_dir_error

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("cortex.store")

FILE_NAME = "cortex.sqlite"

BUSY_TIMEOUT_S = 10.0
"""Seconds to wait for another process, such as a backup, that locks the file."""


def database_path(state_dir: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the path of the database file, and create its directory if it is missing.

    Args:
        state_dir: directory from the settings, if any.
        environ: environment of the process; systemd sets STATE_DIRECTORY.

    Returns:
        None if there is no state directory, so that nothing outlives the gateway.

    Raises:
        ConfigError: the directory cannot be created, or the directory or the file is not writable.
    """
    directory = state_dir or (
        Path(environ["STATE_DIRECTORY"]) if environ.get("STATE_DIRECTORY") else None
    )
    if directory is None:
        return None
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for needed in (directory, path):
            if needed.exists() and not os.access(needed, os.W_OK):
                raise PermissionError(f"{needed} is not writable")
    except OSError as error:
        raise state_dir_error(path, "gateway", error) from error
    return path


class Database:
    """The SQLite database of a gateway.

    One thread owns the only connection, so that a slow disk never blocks the event loop. Work is done in the order in
    which it is submitted, each piece in a transaction of its own.

    A damaged or empty file is an error rather than a reason to start over: without its keys, the gateway would accept
    every request from its own host.

    Args:
        path: the file, created if it is missing; None keeps everything in memory.

    Raises:
        ConfigError: the file cannot be opened or created, or it is damaged or empty.

    Attributes:
        write_failures: transactions that failed.
    """

    def __init__(self, path: Path | None) -> None:
        self.write_failures = 0
        self._problem: str | None = None
        self._path = path
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="database")
        try:
            self._connection = self._executor.submit(_open, path).result()
        except sqlite3.Error as error:
            self._executor.shutdown()
            raise self._unusable(error) from error

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run `work` on the database's thread, in a transaction.

        Returns:
            A future with the result of `work`, or with the exception that rolled the transaction back.
        """
        return self._executor.submit(self._transact, work)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as `submit` does, and wait for it. It is completed even if the caller is cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(work)))

    def run_blocking(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as `submit` does, and block until it is done; for startup, before there are requests.

        Raises:
            ConfigError: SQLite reports an error.
        """
        try:
            return self.submit(work).result()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def create_tables(self, schema: str) -> None:
        """Run a script of `create ... if not exists` statements; blocks until it is done.

        Raises:
            ConfigError: a statement fails.
        """
        self.run_blocking(lambda connection: connection.executescript(schema))

    def close(self) -> None:
        """Finish the work that was submitted and close the file."""
        self._executor.submit(self._connection.close).result()
        self._executor.shutdown()

    def warnings(self) -> tuple[str, ...]:
        """Return what prevents writes at present, as text for operators."""
        return () if self._problem is None else (self._problem,)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        changes = self._connection.total_changes
        try:
            with self._connection:
                result = work(self._connection)
        except sqlite3.OperationalError as error:
            self._record_failure(error)
            raise
        if self._connection.total_changes != changes:
            self._problem = None
        return result

    def _record_failure(self, error: sqlite3.Error) -> None:
        self.write_failures += 1
        text = str(error) if self._path is None else describe_write_failure(self._path, error)
        if self._problem is None:
            event(log, "database_write_failed", logging.ERROR, reason=text)
        self._problem = f"{text}; keys, usage and history are lost when the gateway stops"

    def _unusable(self, error: sqlite3.Error) -> ConfigError:
        return ConfigError(
            f"can't use {self._path}: {error}",
            hints=(
                "restore the file from a backup, or move it away to start without its keys, usage, pins and cordons",
            ),
        )


def save_failed(what: str, error: sqlite3.Error) -> Unavailable:
    """Return the error for a caller whose change could not be written.

    Args:
        what: the clause that says what could not be saved.
        error: what SQLite reported.
    """
    return Unavailable(
        f"{what}: {error}", hints=("check for free space on the disk of the gateway's state_dir",)
    )


def valid_rows(table: str, rows: Iterable[R], parse: Callable[[R], T]) -> Iterator[T]:
    """Yield the rows of a table as `parse` returns them, without those that it rejects.

    Args:
        table: name of the table, for the log.
        rows: the rows.
        parse: raises an error for a row that is damaged, or that another version of cortex wrote.
    """
    for row in rows:
        try:
            yield parse(row)
        except (
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
            msgspec.MsgspecError,
        ) as error:
            row_ignored(table, error)


def row_ignored(table: str, error: Exception) -> None:
    """Log that a row is not used. It stays in the database."""
    event(log, "stored_row_ignored", logging.WARNING, table=table, reason=str(error)[:200])


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        with contextlib.suppress(OSError):  # SQLite reports it below, with the same path
            if not path.exists():
                try:
                    _create(path)
                except (OSError, sqlite3.OperationalError) as error:
                    if not _lacks_room(error):
                        raise
                    event(log, "database_not_created", logging.ERROR, path=path, reason=error)
                    path = None
            # SQLite would accept an empty file as a new database.
            if path is not None and not path.stat().st_size:
                raise sqlite3.DatabaseError("the file is empty, so its contents are lost")
    connection = sqlite3.connect(path or ":memory:", timeout=BUSY_TIMEOUT_S)
    try:
        # Not WAL: its index is a file mapped into memory, and on a full or frozen disk an access kills the process.
        connection.execute("pragma journal_mode = delete")
        (result,) = connection.execute("pragma quick_check(1)").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _lacks_room(error: Exception) -> bool:
    """Return whether a file could not be created because the disk is full."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _create(path: Path) -> None:
    """Create the file under a temporary name, so that an interrupted first start does not look like a damaged file."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)  # hashes of keys, and who used what, are not for other users
    with contextlib.closing(sqlite3.connect(temporary)) as connection:
        connection.execute("pragma user_version = 1")  # so that the file is not empty
    temporary.replace(path)
