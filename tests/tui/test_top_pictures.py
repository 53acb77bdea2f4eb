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
    """Everything full, everybody waiting."""
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
def test_the_documentation_shows_approved_pictures(shown: str, approved: str):
    """Pictures in docs/images are those that the tests hold the screen to, not older ones."""
    here = Path(__file__).parent
    image = here.parents[1] / "docs" / "images" / f"{shown}.svg"

    assert (
        image.read_bytes()
        == (here / "__snapshots__" / "test_top_pictures" / f"{approved}.svg").read_bytes()
    )


@pytest.mark.parametrize("size", SIZES)
def test_overview(snap_compare, size: str):
    """The overview of the sample fleet looks as approved on each class of terminal."""
    assert snap_compare(top(busy_fleet()), terminal_size=SIZES[size])


@pytest.mark.parametrize("fleet", ["healthy", "overload", "64gpus"])
def test_fleets(snap_compare, fleet: str):
    """The overview of a healthy, an overloaded and a large fleet looks as approved."""
    assert snap_compare(top(FLEETS[fleet]), terminal_size=SIZES["wide"])


def test_empty(snap_compare):
    """A gateway that knows no nodes says so."""
    assert snap_compare(top(empty_fleet()), terminal_size=SIZES["normal"])


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_disconnected(snap_compare, size: str):
    """A lost gateway shows the banner over the last picture."""
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
    """Questions, pages and the other views look as approved."""

    async def press(pilot: Pilot[None]) -> None:
        await pilot.press(*keys)
        # What is asked for is drawn once its worker is done.
        asking = [w for w in pilot.app.workers if w.group == "requests"]
        for worker in asking:
            await worker.wait()
        await pilot.pause()

    app = top(busy_fleet(), *sample_trail())
    assert snap_compare(app, terminal_size=(120, 36), run_before=press)


def test_light(snap_compare):
    """The light theme has its own colours for models."""
    assert snap_compare(top(busy_fleet(), theme="cortex-light"), terminal_size=SIZES["wide"])


def test_ascii(snap_compare):
    """With --ascii no cell of a bar needs more than ASCII."""
    assert snap_compare(top(busy_fleet(), ascii_only=True), terminal_size=SIZES["normal"])


def test_no_colour(snap_compare, monkeypatch: pytest.MonkeyPatch):
    """With NO_COLOR everything can still be told apart."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(top(busy_fleet()), terminal_size=SIZES["normal"])
