"""Measured sizes and load times, and operators' directives in the gateway's database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from pydantic import TypeAdapter
from typing_extensions import override

from cortex_common.schema.bounds import Count, Mib, Seconds, UnixSeconds
from cortex_common.schema.directives import Directive
from cortex_common.schema.hardware import DeviceKind
from cortex_server.lifecycle.ports import PlacementStorage
from cortex_server.placement.fit import SizeKey
from cortex_server.placement.records import Measurement
from cortex_server.storage.database import Database, save_failed, valid_rows

log = logging.getLogger("cortex.store")

_MEASUREMENTS = """
create table if not exists measurements (
    model text not null, weights text not null, quant text, context integer, parallel integer, vram_mb integer,
    harness text not null, kind text not null, devices integer not null, card text not null,
    build text not null, node text not null,
    n integer not null, max_mb integer not null, last_mb integer not null, last_s real not null, at real not null
);
create unique index if not exists measurements_key on measurements (
    model, weights, coalesce(quant, ''), coalesce(context, 0), coalesce(parallel, 0),
    coalesce(vram_mb, -1), harness, kind, devices, card, build, node
);
"""

_DIRECTIVES = """
create table if not exists directives (
    node text not null, kind text not null, model text not null, fleet integer not null, body text not null,
    primary key (node, kind, model, fleet)
);
"""

_ADD_MEASUREMENT = """
insert into measurements values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict do update set
    n = n + excluded.n, max_mb = max(max_mb, excluded.max_mb), last_mb = excluded.last_mb,
    last_s = excluded.last_s, at = excluded.at
"""

_READ_MEASUREMENTS = """
select model, weights, quant, context, parallel, vram_mb, harness, kind, devices, card, build, node, max_mb, last_s, at,
    n, last_mb
from measurements order by at
"""

_NUMBERS = TypeAdapter(tuple[Count, Mib, Seconds, UnixSeconds, Count, Mib])

_Rows = Sequence[tuple[object, ...]]


class PlacementStore(PlacementStorage):
    """The tables `measurements` and `directives`.

    Args:
        database: the gateway's database.

    Raises:
        ConfigError: the tables cannot be created.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_change: Future[None] | None = None
        database.run_blocking(_drop_incompatible_measurements)
        database.create_tables(_DIRECTIVES + _MEASUREMENTS)

    @override
    def remove_measurements(self, model: str) -> None:
        def remove(db: sqlite3.Connection) -> None:
            db.execute("delete from measurements where model = ?", (model,))

        self._database.submit(remove).add_done_callback(_log_failure)

    @override
    def measurements(self) -> tuple[Measurement, ...]:
        rows = self._fetch(_READ_MEASUREMENTS)
        return tuple(valid_rows("measurements", rows, _measurement))

    @override
    def add_measurements(self, measurements: Iterable[Measurement]) -> None:
        rows = [
            (
                m.key.model,
                m.key.weights,
                m.key.quant,
                m.key.context,
                m.key.parallel,
                m.key.vram_mb,
                m.key.harness,
                m.key.kind.value,
                m.key.devices,
                m.card,
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

        def add(db: sqlite3.Connection) -> None:
            db.executemany(_ADD_MEASUREMENT, rows)

        if rows:
            self._database.submit(add).add_done_callback(_log_failure)

    @override
    def directives(self) -> tuple[tuple[str, Directive], ...]:
        rows = self._fetch("select node, body from directives")
        return tuple(valid_rows("directives", rows, _directive))

    @override
    def replace_directives(self, directives: Iterable[tuple[str, Directive]]) -> None:
        rows = [(node, *d.key, d.model_dump_json(exclude_defaults=True)) for node, d in directives]
        self._replace(
            "delete from directives", "insert into directives values (?, ?, ?, ?, ?)", rows
        )

    @override
    async def saved(self) -> None:
        try:
            if self._last_change is not None:
                await asyncio.shield(asyncio.wrap_future(self._last_change))
        except sqlite3.Error as error:
            what = "done, but it will be lost when the gateway stops because it cannot be saved"
            raise save_failed(what, error) from error

    def _fetch(self, query: str) -> _Rows:
        return self._database.run_blocking(lambda db: db.execute(query).fetchall())

    def _replace(self, clear: str, insert: str, rows: _Rows) -> None:
        def replace(db: sqlite3.Connection) -> None:
            db.execute(clear)
            db.executemany(insert, rows)

        self._last_change = self._database.submit(replace)
        self._last_change.add_done_callback(_log_failure)


def _log_failure(future: Future[None]) -> None:
    if (error := future.exception()) is not None:
        log.error("placement_write_failed", exc_info=error)


def _drop_incompatible_measurements(db: sqlite3.Connection) -> None:
    """Drop the measurements of a version of cortex with other columns: later loads measure them again."""
    with contextlib.closing(sqlite3.connect(":memory:")) as current:
        current.executescript(_MEASUREMENTS)
        expected = _columns(current)
    if _columns(db) not in {(), expected}:
        db.execute("drop table measurements")


def _columns(db: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(row[1] for row in db.execute("pragma table_info(measurements)"))


def _directive(row: tuple[object, ...]) -> tuple[str, Directive]:
    node, body = row
    return str(node), Directive.model_validate_json(str(body))


def _measurement(row: tuple[object, ...]) -> Measurement:
    (
        model,
        weights,
        quant,
        context,
        parallel,
        vram_mb,
        harness,
        kind,
        devices,
        card,
        build,
        node,
        max_mb,
        load_s,
        at,
        n,
        last_mb,
    ) = row
    numbers = _NUMBERS.validate_python((devices, max_mb, load_s, at, n, last_mb))
    key_devices, device_mb, seconds, measured_at, count, last_device_mb = numbers
    key = SizeKey(
        str(model),
        str(weights),
        None if quant is None else str(quant),
        None if context is None else int(str(context)),
        None if parallel is None else int(str(parallel)),
        None if vram_mb is None else int(str(vram_mb)),
        str(harness),
        DeviceKind(str(kind)),
        key_devices,
    )
    return Measurement(
        key=key,
        card=str(card),
        build=str(build),
        node=str(node),
        device_mb=device_mb,
        load_s=seconds,
        at=measured_at,
        n=count,
        last_mb=last_device_mb,
    )
