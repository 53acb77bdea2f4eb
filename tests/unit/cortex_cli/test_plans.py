from __future__ import annotations

from dataclasses import replace

from sample_fleet import QWEN, busy_fleet

from cortex_cli.color import Colors
from cortex_cli.render.defrag import defrag_text, move_line
from cortex_cli.render.details import model_text
from cortex_cli.render.plan import plan_text
from cortex_common.schema.model_detail import ModelDetail, SizeMeasurement
from cortex_common.schema.operations import PinView
from cortex_common.schema.plans import (
    DefragView,
    DeviceCapacityView,
    LedgerLine,
    MoveView,
    PlannedEviction,
    PlanView,
)

PLAIN = Colors()


def test_a_plan_shows_placement_cost_and_verdicts():
    """A plan shows placement, memory, evictions, and why each other device is not chosen."""
    plan = PlanView(
        model="m", action="load", node="beast", devices=(0, 1), device_mb=34_900,
        size_source="measured", reason="only beast has two free devices",
        evictions=(
            PlannedEviction(
                instance="i", model="old", node="beast", frees_mb=12_000, in_flight=2, idle_s=190.0
            ),
        ),
        ledger=(
            LedgerLine(node="beast", device=0, name="H200", total_mb=143_771, available_mb=96_000, chosen=True),
            LedgerLine(
                node="mule", device=0, name="RTX 4090", total_mb=24_564, available_mb=552,
                reason="needs 34900 MiB, 552 available", missing_mb=34_348, reclaimable_mb=20_000,
            ),
            LedgerLine(node="attic", reason="the node is unreachable"),
        ),
    )  # fmt: skip

    assert plan_text(plan, PLAIN).splitlines() == [
        "m would be loaded on beast/0-1: only beast has two free devices",
        "needs 34.1G on each device (measured)",
        "evicts old from beast: frees 11.7G, idle 3m10s, after 2 requests in flight",
        "",
        "DEVICE   NAME       TOTAL  AVAILABLE  MISSING  RECLAIMABLE  VERDICT",
        "beast/0  H200      140.4G      93.8G        –            –  chosen",
        "mule/0   RTX 4090   24.0G       552M    33.5G        19.5G  needs 34900 MiB, 552 available",
        "attic    –              –          –        –            –  the node is unreachable",
    ]


def test_every_action_of_a_plan_has_a_headline():
    """An action that only a newer gateway knows is shown too."""
    for action in ("serve", "join", "load", "wait", "impossible", "teleport"):
        assert "m" in plan_text(PlanView(model="m", action=action), PLAIN)


MOVE = MoveView(
    instance="i", model="m", node="a", device=0, to_node="a", to_device=1, mb=9_000, load_s=8.0,
    in_flight=2,
)  # fmt: skip


def test_a_defrag_plan_shows_free_memory_before_and_after():
    """A defrag plan lists its moves, the devices that change, and its id."""
    view = DefragView(
        plan="p-1", node="a", device=0, before_mb=30_000, after_mb=39_000, reason="one block", moves=(MOVE,),
        devices=(
            DeviceCapacityView(node="a", device=0, total_mb=48_000, before_mb=30_000, after_mb=39_000),
            DeviceCapacityView(node="a", device=1, total_mb=48_000, before_mb=20_000, after_mb=11_000),
            DeviceCapacityView(node="a", device=2, total_mb=48_000, before_mb=5_000, after_mb=5_000),
        ),
    )  # fmt: skip
    lines = defrag_text(view, PLAIN).splitlines()

    assert lines[0] == "1 move would make 38.1G free on a/0; the largest free block is 29.3G"
    assert (
        "a/0  [#########...............]  29.3G free  ->  [####....................]  38.1G free"
        in lines
    )
    assert not [line for line in lines if line.startswith("a/2")]
    assert lines[-1] == "plan p-1"


def test_a_move_mentions_that_a_copy_loads_first():
    """The line of a move says that a copy loads first, so that no request is interrupted."""
    assert move_line(MOVE) == "moves m from a/0 to a/1: 8.8G, a copy loads first (about 8.0s)"


def test_a_defrag_plan_without_moves_is_one_line():
    """Without moves, only the reason is shown."""
    assert defrag_text(DefragView(reason="it is one piece"), PLAIN) == "it is one piece"


def test_the_details_of_a_model():
    """The details contain the estimate, each measurement, pins and the reason for the placement."""
    fleet = busy_fleet()
    detail = ModelDetail(
        model=QWEN, harness="mistralrs", vram_mb=70_000, min_devices=2, load_s=41.0,
        measured=(
            SizeMeasurement(
                node="beast", kind="cuda", devices=2, build="0.9.5", loads=3, device_mb=34_900,
                last_mb=34_100, load_s=41.2, at=0.0,
            ),
        ),
        pins=(PinView(model=QWEN, node="beast", until=fleet.at + 3600),),
    )  # fmt: skip
    text = model_text(detail, fleet.model(QWEN), fleet, PLAIN)

    assert "estimate          68.4G over 2 device(s), from models.toml" in text
    assert "pinned            on beast for another 1h00m" in text
    assert "only beast has two free devices" in text
    assert "beast  2 cuda        34.1G  33.3G        41s      3  0.9.5" in text


def test_the_details_of_a_model_without_instances():
    """A model that is not loaded has facts but no tables."""
    fleet = replace(busy_fleet(), nodes=())
    text = model_text(ModelDetail(model="m", harness="x"), None, fleet, PLAIN)

    assert text.splitlines()[0] == "m"
    assert "NODE/DEVICE" not in text
