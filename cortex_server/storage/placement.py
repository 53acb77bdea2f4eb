"""What outlasts the gateway about placement: what loads took, and pins and cordons. Small; use rebuilds the former."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cortex_common.errors import Unavailable
from cortex_common.net.state_dir import unusable
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import ModelId
from cortex_server.lifecycle.measurements import Measurement
from cortex_server.lifecycle.pins import Pin
from cortex_server.placement.fit import SizeKey
from cortex_server.storage.database import opened

T = TypeVar("T")

log = logging.getLogger("cortex.store")

_LOADS = """
create table if not exists loads (
    model text not null, weights text not null, quant text, context integer, parallel integer, harness text not null,
    kind text not null, devices integer not null, build text not null, node text not null,
    n integer not null, max_mb integer not null, last_mb integer not null, last_s real not null, at real not null
);
create unique index if not exists loads_key on loads (
    model, weights, coalesce(quant, ''), coalesce(context, 0), coalesce(parallel, 0),
    harness, kind, devices, build, node
);
"""

_WISHES = """
create table if not exists pins (
    model text not null, node text not null, until real, primary key (model, node)
);
create table if not exists cordons (node text primary key);
"""

_REMEMBER = """
insert into loads values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict do update set
    n = n + excluded.n, max_mb = max(max_mb, excluded.max_mb), last_mb = excluded.last_mb,
    last_s = excluded.last_s, at = excluded.at
"""

_READ = """
select model, weights, quant, context, parallel, harness, kind, devices, build, node, max_mb, last_s, at, n, last_mb
from loads order by at
"""


def store_path(
    state_dir: Path | None, environ: Mapping[str, str], name: str = "placement.sqlite"
) -> Path | None:
    """A file in the state directory, which is made if missing; None where nothing is to outlast the gateway.

    Args:
        state_dir: as configured.
        environ: of the process; systemd sets STATE_DIRECTORY.
        name: of the file.

    Raises:
        ConfigError: it can't be made, or written.
    """
    directory = state_dir or (
        Path(environ["STATE_DIRECTORY"]) if environ.get("STATE_DIRECTORY") else None
    )
    if directory is None:
        return None
    path = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for needed in (directory, path):
            if needed.exists() and not os.access(needed, os.W_OK):
                raise PermissionError(f"{needed} can't be written")
    except OSError as failed:
        raise unusable(path, "gateway", failed) from failed
    return path


class PlacementStore:
    """A SQLite file, written by a thread of its own so that a slow disk delays no request.

    Args:
        path: the file; None keeps everything in memory.

    Raises:
        ConfigError: it can't be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db = self._run(lambda: _opened(path)).result()
        self._wish: Future[None] | None = None

    def measurements(self) -> tuple[Measurement, ...]:
        """All that were remembered, the latest last; those of the same key, build and node are one."""
        return self._run(lambda: tuple(map(_measurement, self._db.execute(_READ)))).result()

    def remember(self, measurements: Iterable[Measurement]) -> None:
        """Keep what loads took; returns at once."""
        rows = [
            (
                m.key.model,
                m.key.weights,
                m.key.quant,
                m.key.context,
                m.key.parallel,
                m.key.harness,
                m.key.kind.value,
                m.key.devices,
                m.build,
                m.node,
                m.n,
                m.device_mb,
                m.device_mb,
                m.load_s,
                m.at,
            )
            for m in measurements
        ]
        if rows:
            self._run(lambda: self._write(_REMEMBER, rows)).add_done_callback(_report)

    def pins(self) -> tuple[Pin, ...]:
        """All pins, expired ones included."""
        read = "select model, node, until from pins"
        rows = self._run(lambda: self._db.execute(read).fetchall()).result()
        return tuple(Pin(ModelId(model), node or None, until) for model, node, until in rows)

    def keep_pins(self, pins: Iterable[Pin]) -> None:
        """Replace all pins; returns at once: see `kept`."""
        rows = [(p.model, p.node or "", p.until) for p in pins]
        self._replace("delete from pins", "insert into pins values (?, ?, ?)", rows)

    def cordons(self) -> frozenset[str]:
        """Names of the nodes that an operator has cordoned."""
        rows = self._run(lambda: self._db.execute("select node from cordons").fetchall()).result()
        return frozenset(str(node) for (node,) in rows)

    def keep_cordons(self, nodes: Iterable[str]) -> None:
        """Replace all of them; returns at once: see `kept`."""
        rows = [(node,) for node in nodes]
        self._replace("delete from cordons", "insert into cordons values (?)", rows)

    def _replace(self, clear: str, fill: str, rows: Sequence[tuple[object, ...]]) -> None:
        def replace() -> None:
            with self._db:
                self._db.execute(clear)
                self._db.executemany(fill, rows)

        self._wish = self._run(replace)
        self._wish.add_done_callback(_report)

    async def kept(self) -> None:
        """Wait until the last change of pins or cordons is on the disk.

        Raises:
            Unavailable: it can't be written; it holds all the same, until the gateway ends.
        """
        try:
            if self._wish is not None:
                await asyncio.wrap_future(self._wish)
        except sqlite3.Error as failed:
            raise Unavailable(
                f"done, but forgotten when the gateway ends: it can't be written down: {failed}",
                hints=("is there room on the disk of the gateway's state_dir?",),
            ) from failed

    def close(self) -> None:
        """Finish writing and close the file."""
        self._run(self._db.close).result()
        self._thread.shutdown()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._db:
            self._db.executemany(statement, rows)

    def _run(self, work: Callable[[], T]) -> Future[T]:
        return self._thread.submit(work)


def _report(done: Future[None]) -> None:
    if (failed := done.exception()) is not None:
        log.error("store_failed", exc_info=failed)


def _opened(path: Path | None) -> sqlite3.Connection:
    db = opened(path, _WISHES, rebuildable=True)
    with contextlib.closing(sqlite3.connect(":memory:")) as example:
        example.executescript(_LOADS)
        wanted = _columns(example)
    if _columns(db) not in {(), wanted}:
        db.execute("drop table loads")  # of another version; the next loads are measured anew
    db.executescript(_LOADS)
    return db


def _columns(db: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(row[1] for row in db.execute("pragma table_info(loads)"))


def _measurement(row: tuple[object, ...]) -> Measurement:
    (
        model,
        weights,
        quant,
        context,
        parallel,
        harness,
        kind,
        devices,
        build,
        node,
        most,
        took,
        at,
        n,
        last,
    ) = row
    key = SizeKey(
        str(model),
        str(weights),
        None if quant is None else str(quant),
        None if context is None else int(str(context)),
        None if parallel is None else int(str(parallel)),
        str(harness),
        DeviceKind(str(kind)),
        int(str(devices)),
    )
    return Measurement(
        key=key,
        build=str(build),
        node=str(node),
        device_mb=int(str(most)),
        load_s=float(str(took)),
        at=float(str(at)),
        n=int(str(n)),
        last_mb=int(str(last)),
    )
