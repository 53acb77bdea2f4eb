from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from core_worlds import NOW, device, instance, model_config, node

from cortex_common.errors import ConfigError, Unavailable
from cortex_common.schema.fleet import FleetSnapshot, ModelState, ModelView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import ModelId
from cortex_server.lifecycle.measurements import HALF_LIFE_S, Measurement, Measurements
from cortex_server.lifecycle.pins import Pin, PinStore
from cortex_server.placement.fit import SizeSource, size_key
from cortex_server.storage.database import opened
from cortex_server.storage.keys import KeyStore
from cortex_server.storage.placement import PlacementStore, store_path

A = model_config("a", 500, quant="Q4", context=4096)
KEY = size_key(A, DeviceKind.CUDA, 1)


def took(mb: int, **more: object) -> Measurement:
    """A load of A that took so many MiB."""
    base = Measurement(key=KEY, build="1.0", node="n1", device_mb=mb, load_s=10.0, at=NOW)
    return replace(base, **more)  # type: ignore[arg-type]  # fields by name are what a test is about


def test_measurements_outlast_the_store(tmp_path: Path) -> None:
    """The number of loads, the most and the last of each key, build and node are read back."""
    path = tmp_path / "placement.sqlite"
    store = PlacementStore(path)
    store.remember([took(300), took(400, at=NOW + 1), took(350, at=NOW + 2, load_s=20.0)])
    store.remember([took(700, node="n2", at=NOW + 3)])
    store.close()
    store = PlacementStore(path)
    first, second = store.measurements()
    store.close()
    assert (first.key, first.n, first.device_mb, first.last_mb, first.load_s) == (
        KEY,
        3,
        400,
        350,
        20,
    )
    assert (second.node, second.n, second.device_mb) == ("n2", 1, 700)


def test_a_state_directory_that_cant_be_used_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    """A path that is no directory is said to be so, with the setting to change."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't use") as refused:
        store_path(tmp_path / "file" / "state", {})
    assert "state_dir" in refused.value.hints[0]


def test_what_an_older_version_measured_is_measured_anew(tmp_path: Path) -> None:
    """A file whose loads do not tell their weights is taken over without them."""
    path = tmp_path / "placement.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("create table loads (model text not null, quant text)")
        old.execute("insert into loads values ('a', 'Q4')")
    old.close()
    store = PlacementStore(path)
    assert store.measurements() == ()
    store.remember([took(300)])
    store.close()


def test_other_weights_have_a_size_of_their_own() -> None:
    """What a model took counts no more once its profile names another source, file or argument."""
    for change in ({"source": "/b.gguf"}, {"file": "b.gguf"}, {"args": ("--mmproj", "x")}):
        other = A.model_copy(update=change)
        assert size_key(other, DeviceKind.CUDA, 1) not in Measurements([took(400)]).sizes


def test_pins_outlast_the_store(tmp_path: Path) -> None:
    """Pins are read back as they were, whether for one node or all, for a time or for good."""
    pins = (Pin(ModelId("a"), None, None), Pin(ModelId("a"), "n1", NOW + 60))
    store = PlacementStore(tmp_path / "placement.sqlite")
    store.keep_pins([Pin(ModelId("b"), None, None)])
    store.keep_pins(pins)
    store.close()
    store = PlacementStore(tmp_path / "placement.sqlite")
    assert sorted(store.pins(), key=str) == sorted(pins, key=str)
    store.close()


def test_the_largest_load_of_a_build_is_what_is_planned_with() -> None:
    """A smaller load does not shrink the size, another build begins anew, and seconds follow the latest loads."""
    knowledge = Measurements([took(400), took(300, load_s=20.0)])
    assert knowledge.sizes[KEY].device_mb == 400
    assert knowledge.load_seconds("a") == 15.0
    assert Measurements([took(400), took(300, build="2.0")]).sizes[KEY].device_mb == 300


def test_a_refusal_teaches_what_is_needed() -> None:
    """The node's number is used until a load is measured, and does not replace a larger measurement."""
    knowledge = Measurements()
    knowledge.refused(A, DeviceKind.CUDA, 1, 800)
    assert knowledge.sizes[KEY].source is SizeSource.NODE
    measured = Measurements([took(900)])
    measured.refused(A, DeviceKind.CUDA, 1, 800)
    assert measured.sizes[KEY].device_mb == 900


def test_a_ready_instance_is_measured_once_and_again_when_it_has_grown() -> None:
    """Looking again learns nothing new, until its memory has grown; that is no further load."""
    knowledge = Measurements()

    def look(mb: int) -> list[Measurement]:
        made = instance("a", mb=mb, load_seconds=12.0, engine_version="1.0")
        snapshot = FleetSnapshot(1, NOW, (node("n1", (device(0),), (made,)),))
        return knowledge.observe(snapshot, {"a": A}, 0.0)

    assert [m.device_mb for m in look(300)] == [300]
    assert look(300) == []
    assert [m.n for m in look(330)] == [0]
    (known,) = knowledge.measurements("a")
    assert (known.n, known.device_mb, known.load_s) == (1, 330, 12.0)


def test_rates_age() -> None:
    """Requests count half after the half-life, so that yesterday's favourite gives way."""
    knowledge = Measurements()

    def asked(total: int, now: float) -> None:
        view = ModelView(id=ModelId("a"), state=ModelState.READY, requests=total)
        knowledge.observe(FleetSnapshot(1, NOW, (), (view,)), {}, now)

    asked(0, 0.0)
    asked(100, 1.0)
    before = knowledge.rate("a", 1.0)
    assert before > 0
    assert abs(knowledge.rate("a", 1.0 + HALF_LIFE_S) - before / 2) < 1e-9


def test_pins_hold_until_their_time() -> None:
    """A pin with an end is gone after it; unpinning a node leaves the other pins."""
    board = PinStore([Pin(ModelId("a"), "n1", NOW + 60)])
    board.add(Pin(ModelId("a"), "n2", None))
    assert board.pins(ModelId("a"), "n1")
    assert not board.pins(ModelId("a"), "n3")
    assert not board.expire(NOW + 59)
    assert board.expire(NOW + 60)
    assert not board.pins(ModelId("a"), "n1")
    assert board.remove(ModelId("a"), "n2")
    assert not board.remove(ModelId("a"), None)
    assert board.held == frozenset()


async def test_a_pin_that_can_not_be_written_down_is_told(tmp_path: Path) -> None:
    """Whoever waits hears that the disk is full, say; the next change is kept again."""
    path = tmp_path / "placement.sqlite"
    store = PlacementStore(path)
    await store.kept()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("alter table cordons rename to away")
        store.keep_cordons(["n1"])
        with pytest.raises(Unavailable, match="can't be written down"):
            await store.kept()
        other.execute("alter table away rename to cordons")
    store.keep_cordons(["n1"])
    await store.kept()
    assert store.cordons() == {"n1"}
    store.close()


def test_a_newer_version_may_have_measured_more(tmp_path: Path) -> None:
    """Its loads are measured anew, since it knows what it wrote and this one does not."""
    path = tmp_path / "placement.sqlite"
    PlacementStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("alter table loads add column watts real")
    store = PlacementStore(path)
    store.remember([took(300)])
    assert len(store.measurements()) == 1
    store.close()


def test_a_damaged_file_stops_no_gateway(tmp_path: Path) -> None:
    """What use rebuilds is put aside and begun anew, be it overwritten, cut short or empty."""
    path = tmp_path / "placement.sqlite"
    PlacementStore(path).close()
    for damaged in (b"x" * 9000, path.read_bytes()[:5000], b""):
        path.write_bytes(damaged)
        store = PlacementStore(path)
        assert store.cordons() == frozenset()
        store.close()
        assert (tmp_path / "placement.sqlite.damaged").read_bytes() == damaged


def test_a_first_start_that_broke_off_is_no_loss(tmp_path: Path) -> None:
    """On a full disk, or killed: the next start begins as if there had been none."""
    path = tmp_path / "access.sqlite"
    with pytest.raises(ConfigError, match="syntax error"):
        opened(path, "create table whole (x); create tab", rebuildable=False)
    assert not path.exists()
    KeyStore(path).close()
    assert [file.name for file in tmp_path.iterdir()] == ["access.sqlite"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("damaged", "said"), [(b"x" * 9000, "file is not a database"), (b"", "the file is empty")]
)
def test_keys_are_not_begun_anew(tmp_path: Path, damaged: bytes, said: str) -> None:
    """Without its keys a gateway would serve its host to anybody there, so a damaged file of keys ends it."""
    path = tmp_path / "access.sqlite"
    KeyStore(path).close()
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=rf"access\.sqlite: {said}"):
        KeyStore(path)
    assert path.read_bytes() == damaged
