from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sample_fleet import busy_fleet, empty_fleet, large_fleet, sample_trail
from textual.pilot import Pilot
from top_rig import top

from cortex_cli.watch import ConnectionLost
from cortex_common.schema.fleet import FleetSnapshot

SIZES = {"wide": (140, 40), "normal": (100, 30), "narrow": (79, 24), "tiny": (60, 15)}


def overloaded_fleet() -> FleetSnapshot:
    """Return a fleet with full devices and waiting requests."""
    fleet = busy_fleet()
    full = tuple(
        replace(
            n,
            devices=tuple(
                replace(d, vram_used_mb=round(d.vram_total_mb * 0.99), utilization_pct=100)
                for d in n.devices
            ),
        )
        for n in fleet.nodes
    )
    waiting = tuple(replace(m, waiting=120, in_flight=64) for m in fleet.models)
    return replace(fleet, nodes=full, models=waiting)


FLEETS = {
    "healthy": replace(busy_fleet(), nodes=busy_fleet().nodes[:1], models=busy_fleet().models[:2]),
    "busy": busy_fleet(),
    "overload": overloaded_fleet(),
    "64gpus": large_fleet(nodes=8, devices=8, models=60),
}


@pytest.mark.parametrize(
    ("shown", "approved"),
    [
        ("top", "test_overview[wide]"),
        ("requests", "test_dialogs[requests-keys6]"),
        ("plan", "test_dialogs[plan-keys1]"),
    ],
)
def test_images_of_the_documentation_are_current(shown: str, approved: str):
    """Images in docs/images equal the snapshots."""
    here = Path(__file__).parent
    image = here.parents[1] / "docs" / "images" / f"{shown}.svg"

    assert (
        image.read_bytes()
        == (here / "__snapshots__" / "test_top_pictures" / f"{approved}.svg").read_bytes()
    )


@pytest.mark.parametrize("size", SIZES)
def test_overview(snap_compare, size: str):
    """The overview matches its snapshot on each size of terminal."""
    assert snap_compare(top(busy_fleet()), terminal_size=SIZES[size])


@pytest.mark.parametrize("fleet", ["healthy", "overload", "64gpus"])
def test_fleets(snap_compare, fleet: str):
    """The overview of a healthy, an overloaded and a large fleet matches its snapshot."""
    assert snap_compare(top(FLEETS[fleet]), terminal_size=SIZES["wide"])


def test_empty(snap_compare):
    """A fleet without nodes says so."""
    assert snap_compare(top(empty_fleet()), terminal_size=SIZES["normal"])


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_disconnected(snap_compare, size: str):
    """A lost gateway shows the banner above the last known state."""
    app = top(busy_fleet(), ConnectionLost("connection refused", 4.0))
    assert snap_compare(app, terminal_size=SIZES[size])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("confirm", ["down", "down", "u"]),
        ("plan", ["l"]),
        ("keys", ["question_mark"]),
        ("describe", ["down", "down", "d"]),
        ("filter", ["slash", *"gem"]),
        ("gpus", ["3"]),
        ("requests", ["4"]),
        ("events", ["5"]),
        ("logs", ["down", "L"]),
        ("marked", ["space", "space"]),
    ],
)
def test_dialogs(snap_compare, name: str, keys: list[str]):
    """Dialogs, pages and the other views match their snapshots."""

    async def press(pilot: Pilot[None]) -> None:
        await pilot.press(*keys)
        # The requests are drawn when their worker is done.
        workers = [w for w in pilot.app.workers if w.group == "requests"]
        for worker in workers:
            await worker.wait()
        await pilot.pause()

    app = top(busy_fleet(), *sample_trail())
    assert snap_compare(app, terminal_size=(120, 36), run_before=press)


def test_light(snap_compare):
    """The light theme has its own colors for models."""
    assert snap_compare(top(busy_fleet(), theme="cortex-light"), terminal_size=SIZES["wide"])


def test_ascii(snap_compare):
    """With --ascii, bars contain only ASCII characters."""
    assert snap_compare(top(busy_fleet(), ascii_only=True), terminal_size=SIZES["normal"])


def test_no_color(snap_compare, monkeypatch: pytest.MonkeyPatch):
    """With NO_COLOR, everything is still distinguishable."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(top(busy_fleet()), terminal_size=SIZES["normal"])
