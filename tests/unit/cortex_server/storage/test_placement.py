"""Measurements and directives in the database, and what measurements are used for."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from placement_states import NOW, device, instance, model_config, node

from cortex_common.errors import Unavailable
from cortex_common.schema.directives import Directive, DirectiveKind
from cortex_common.schema.fleet import FleetSnapshot, ModelState, ModelView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import ModelId
from cortex_server.lifecycle.measurements import HALF_LIFE_S, Measurements
from cortex_server.placement.fit import SizeSource, size_key
from cortex_server.placement.records import Measurement
from cortex_server.storage.database import Database
from cortex_server.storage.placement import PlacementStore

CORDON = Directive(kind=DirectiveKind.CORDON, set_at=NOW)
A = model_config("a", 500, quant="Q4", context=4096)
KEY = size_key(A, DeviceKind.CUDA, 1)


def measured(mb: int, **more: object) -> Measurement:
    """Return a measurement of model A."""
    base = Measurement(
        key=KEY, card="H200", build="1.0", node="n1", device_mb=mb, load_s=10.0, at=NOW
    )
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


@contextlib.contextmanager
def opened(path: Path) -> Iterator[PlacementStore]:
    """Open a store in a database file, and close the file afterwards."""
    with contextlib.closing(Database(path)) as database:
        yield PlacementStore(database)


def test_measurements_outlive_the_gateway(tmp_path: Path) -> None:
    """The number of loads, the maximum and the last of each key, build and node are restored."""
    path = tmp_path / "cortex.sqlite"
    with opened(path) as store:
        store.add_measurements(
            [measured(300), measured(400, at=NOW + 1), measured(350, at=NOW + 2, load_s=20.0)]
        )
        store.add_measurements([measured(700, node="n2", at=NOW + 3)])
    with opened(path) as store:
        first, second = store.measurements()
    assert (first.key, first.n, first.device_mb, first.last_mb, first.load_s) == (
        KEY,
        3,
        400,
        350,
        20,
    )
    assert (second.node, second.n, second.device_mb) == ("n2", 1, 700)


def test_measurements_of_an_older_version_are_dropped(tmp_path: Path) -> None:
    """A table with other columns is replaced by an empty one."""
    path = tmp_path / "cortex.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute("create table measurements (model text not null, quant text)")
        old.execute("insert into measurements values ('a', 'Q4')")
    with opened(path) as store:
        assert store.measurements() == ()
        store.add_measurements([measured(300)])
        assert len(store.measurements()) == 1


def test_measurements_of_a_newer_version_are_dropped(tmp_path: Path) -> None:
    """A table with an additional column is replaced too, because this version can't fill it."""
    path = tmp_path / "cortex.sqlite"
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("alter table measurements add column watts real")
    with opened(path) as store:
        store.add_measurements([measured(300)])
        assert len(store.measurements()) == 1


def test_other_weights_have_their_own_size() -> None:
    """Measurements do not apply once the model config has another source, file or argument."""
    for change in ({"source": "/b.gguf"}, {"file": "b.gguf"}, {"args": ("--mmproj", "x")}):
        other = A.model_copy(update=change)
        assert size_key(other, DeviceKind.CUDA, 1) not in Measurements([measured(400)]).sizes


def test_directives_outlive_the_gateway(tmp_path: Path) -> None:
    """Directives are restored with their nodes, those that were removed included."""
    pin = Directive(kind=DirectiveKind.PIN, model="a", until=NOW + 60, set_at=NOW)
    everywhere = Directive(kind=DirectiveKind.PIN, model="a", fleet=True, active=False, set_at=NOW)
    kept = [("n1", pin), ("", everywhere), ("n1", CORDON)]
    path = tmp_path / "cortex.sqlite"
    with opened(path) as store:
        store.replace_directives([("n2", CORDON)])
        store.replace_directives(kept)
    with opened(path) as store:
        assert sorted(store.directives(), key=str) == sorted(kept, key=str)


def test_plans_use_the_largest_load_of_a_build() -> None:
    """A smaller load does not reduce the size, another build resets it, and seconds follow the latest loads."""
    measurements = Measurements([measured(400), measured(300, load_s=20.0)])
    assert measurements.sizes[KEY]["H200"].device_mb == 400
    assert measurements.load_seconds("a") == 15.0
    assert (
        Measurements([measured(400), measured(300, build="2.0")]).sizes[KEY]["H200"].device_mb
        == 300
    )


def test_a_refused_load_sets_the_size() -> None:
    """The size from the node is used until a load is measured, and does not replace a larger measurement."""
    measurements = Measurements()
    measurements.record_refusal(A, DeviceKind.CUDA, 1, "H200", 800)
    assert measurements.sizes[KEY]["H200"].source is SizeSource.NODE
    known = Measurements([measured(900)])
    known.record_refusal(A, DeviceKind.CUDA, 1, "H200", 800)
    assert known.sizes[KEY]["H200"].device_mb == 900


def test_a_ready_instance_is_measured_again_when_it_has_grown() -> None:
    """The same snapshot adds nothing; grown memory updates the size without counting another load."""
    measurements = Measurements()

    def observe(mb: int) -> list[Measurement]:
        made = instance("a", mb=mb, load_seconds=12.0, engine_version="1.0")
        snapshot = FleetSnapshot(1, NOW, (node("n1", (device(0),), (made,)),))
        return measurements.observe(snapshot, {"a": A}, 0.0)

    assert [m.device_mb for m in observe(300)] == [300]
    assert observe(300) == []
    assert [m.n for m in observe(330)] == [0]
    (known,) = measurements.for_model("a")
    assert (known.n, known.device_mb, known.load_s) == (1, 330, 12.0)


def test_request_rates_decay() -> None:
    """Requests count half after the half-life."""
    measurements = Measurements()

    def observe(total: int, now: float) -> None:
        view = ModelView(id=ModelId("a"), state=ModelState.READY, requests=total)
        measurements.observe(FleetSnapshot(1, NOW, (), (view,)), {}, now)

    observe(0, 0.0)
    observe(100, 1.0)
    before = measurements.rate("a", 1.0)
    assert before > 0
    assert abs(measurements.rate("a", 1.0 + HALF_LIFE_S) - before / 2) < 1e-9


async def test_a_cordon_that_cannot_be_saved_is_reported(tmp_path: Path) -> None:
    """The caller gets an error if the write fails, and the next change is saved again."""
    path = tmp_path / "cortex.sqlite"
    with opened(path) as store:
        await store.saved()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("alter table directives rename to away")
            store.replace_directives([("n1", CORDON)])
            with pytest.raises(Unavailable, match="cannot be saved"):
                await store.saved()
            other.execute("alter table away rename to directives")
        store.replace_directives([("n1", CORDON)])
        await store.saved()
        assert store.directives() == (("n1", CORDON),)
