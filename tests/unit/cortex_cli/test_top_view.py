from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_fleet import GEMMA, LLAMA, NOW, PHI, QWEN, busy_fleet, empty_fleet, sample_requests

from cortex_cli.tui.bars import (
    PALETTE,
    Ghost,
    MemoryKind,
    Segment,
    Share,
    assign_colors,
    memory_shares,
    segment_text,
    segments,
    sparkline,
)
from cortex_cli.tui.command_palette import palette_entries
from cortex_cli.tui.commands import COMMAND_NAMES, Command, ScreenCommand, parse
from cortex_cli.tui.history import MAX_SAMPLES, History
from cortex_cli.tui.keys import validate_keymap
from cortex_cli.tui.screens.logs import strip_control
from cortex_cli.tui.view import (
    Choice,
    Sort,
    describe,
    matches_filter,
    model_rows,
    show_rate,
    summarize,
)
from cortex_cli.tui.widgets.requests import request_rows
from cortex_common.errors import BadRequest, ConfigError
from cortex_common.schema.fleet import FleetSnapshot, ModelState

memory = st.builds(Share, st.sampled_from(MemoryKind), st.floats(0, 1e6), st.text(max_size=12))


@given(st.lists(memory, max_size=12), st.integers(0, 200))
def test_segments_fill_the_bar_exactly(shares: list[Share], width: int):
    """The widths of segments sum up to the bar's width, and no segment is empty."""
    drawn = segments(shares, width)

    assert sum(s.width for s in drawn) == width
    assert all(s.width > 0 for s in drawn)


@given(st.lists(memory, min_size=1, max_size=12), st.integers(1, 200))
def test_segments_are_in_proportion(shares: list[Share], width: int):
    """The width of a segment differs by less than one cell from the exact one."""
    total = sum(s.mb for s in shares)
    for kind in MemoryKind:
        exact = width * sum(s.mb for s in shares if s.kind is kind) / total if total else 0
        count = sum(s.kind is kind for s in shares)
        actual = sum(s.width for s in segments(shares, width) if s.kind is kind)
        if total:
            assert abs(actual - exact) <= max(1, count)


@given(
    st.sampled_from(MemoryKind), st.text("abc-/.", max_size=30), st.integers(0, 60), st.booleans()
)
def test_segment_text_has_the_width_of_the_segment(
    kind: MemoryKind, label: str, width: int, ascii_only: bool
):
    """The text of a segment has exactly its width, and only ASCII characters with --ascii."""
    text = segment_text(Segment(kind, label, width), ascii_only=ascii_only)

    assert len(text) == width
    assert text.isascii() or not ascii_only


def test_shares_of_a_device_sum_up_to_its_memory():
    """The shares of models, reserved, other and free memory sum up to the device's total."""
    for node in busy_fleet().nodes:
        for device in node.devices:
            shares = memory_shares(device, node.instances)
            assert sum(s.mb for s in shares) == pytest.approx(device.vram_total_mb)


def test_each_instance_is_a_share():
    """Each instance on a device is a share of the size that was measured on that device."""
    beast = busy_fleet().nodes[0]
    found = {s.label: s.mb for s in memory_shares(beast.devices[0], beast.instances) if s.label}

    assert found == {QWEN: 34_900, GEMMA: 12_000}


def test_a_ghost_shows_planned_memory():
    """Planned memory comes after used memory and reduces free memory."""
    beast = busy_fleet().nodes[0]
    current = memory_shares(beast.devices[1], beast.instances)
    planned = memory_shares(beast.devices[1], beast.instances, [Ghost("beast", 1, PHI, 9_000)])

    def free(shares: list[Share]) -> float:
        return sum(s.mb for s in shares if s.kind is MemoryKind.FREE)

    assert Share(MemoryKind.GHOST, 9_000, PHI) in planned
    assert free(current) - free(planned) == 9_000


@given(st.lists(st.none() | st.floats(0, 100), max_size=80), st.integers(0, 60), st.booleans())
def test_a_sparkline_has_the_given_width(values: list[float | None], width: int, ascii_only: bool):
    """A sparkline has exactly the given width, however many values there are."""
    assert len(sparkline(values, 0, 100, width, ascii_only=ascii_only)) == width


def test_a_sparkline_has_a_fixed_scale():
    """A constant 95% is drawn high, because the scale does not depend on the values."""
    assert sparkline([95, 95], 0, 100, 2, ascii_only=False) == "██"
    assert sparkline([0, 50, 100], 0, 100, 3, ascii_only=False) == "▁▄█"


@given(st.sets(st.text(max_size=6), max_size=PALETTE))
def test_few_models_have_different_colors(models: set[str]):
    """No two models share a color while the palette has enough colors."""
    assert len(set(assign_colors(models, {}).values())) == len(models)


@given(st.sets(st.text(max_size=6), min_size=1), st.text(max_size=6))
def test_a_model_keeps_its_color(models: set[str], new_model: str):
    """A new model does not change the colors of the others."""
    before = assign_colors(models, {})
    after = assign_colors({*models, new_model}, before)

    assert {m: after[m] for m in models} == before


def later(snapshot: FleetSnapshot, seconds: float, **counters: int) -> FleetSnapshot:
    """Return the fleet some seconds later, with increased counters of the first model."""
    first, *rest = snapshot.models
    grown = replace(first, **{k: getattr(first, k) + v for k, v in counters.items()})
    return replace(snapshot, at=snapshot.at + seconds, models=(grown, *rest))


def test_rates_come_from_two_snapshots():
    """Ten requests and a hundred tokens in five seconds are 2 and 20 per second."""
    one = busy_fleet()
    history = History().after(one).after(later(one, 5, requests=10, tokens_out=100))

    assert (history.rates[QWEN].requests, history.rates[QWEN].tokens) == (2.0, 20.0)


def test_one_snapshot_has_no_rates():
    """A single snapshot gives no rates."""
    assert History().after(busy_fleet()).rates == {}


def test_a_restarted_gateway_gives_no_negative_rate():
    """Counters that were reset by a restart of the gateway start a new window."""
    one = busy_fleet()
    two = replace(later(one, 5, requests=-1000), started_at=one.started_at + 100)

    assert History().after(one).after(two).rates == {}


def test_the_history_is_bounded():
    """Only the most recent samples are kept."""
    snapshot, history = busy_fleet(), History()
    for _ in range(MAX_SAMPLES + 20):
        snapshot = later(snapshot, 1)
        history = history.after(snapshot)

    assert {len(series) for series in history.utilization.values()} == {MAX_SAMPLES}


def test_snapshots_within_a_second_are_one_sample():
    """Snapshots that arrive within a second add a single sample."""
    one = busy_fleet()
    history = History().after(one).after(later(one, 0.25)).after(later(one, 0.5))

    assert len(history.samples) == 1


def test_failed_and_loading_models_come_first():
    """The default order is by urgency of the state, then by name."""
    assert [r.id for r in model_rows(busy_fleet(), History(), Choice())] == [
        PHI,
        LLAMA,
        QWEN,
        GEMMA,
    ]


@pytest.mark.parametrize(
    ("sort", "first"),
    [(Sort.NAME, GEMMA), (Sort.VRAM, QWEN), (Sort.QUEUE, LLAMA), (Sort.TTFT, QWEN)],
)
def test_sort_orders(sort: Sort, first: str):
    """Numbers are sorted descending, names ascending."""
    assert model_rows(busy_fleet(), History(), Choice(sort=sort))[0].id == first


@given(st.sampled_from(Sort))
def test_sorting_keeps_every_model(sort: Sort):
    """Sorting neither drops nor duplicates a model, in either direction."""
    expected = {m.id for m in busy_fleet().models}
    for reverse in (False, True):
        shown = [
            r.id for r in model_rows(busy_fleet(), History(), Choice(sort=sort, reverse=reverse))
        ]
        assert set(shown) == expected
        assert len(shown) == len(expected)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("qwen", {QWEN}),
        ("QWEN3", {QWEN}),
        ("beast", {QWEN, GEMMA}),
        ("beast !qwen", {GEMMA}),
        ("failed", {PHI}),
        ("nothing-like-it", set()),
        ("", {QWEN, GEMMA, LLAMA, PHI}),
    ],
)
def test_filter(words: str, found: set[str]):
    """A model matches if its name, aliases, state, harness and nodes contain every word and no !word."""
    assert {m.id for m in busy_fleet().models if matches_filter(m, words)} == found


def test_the_status_column():
    """The status is the progress of a load, a pin, the idle time, or the reason of a failure."""
    status = {r.id: r.status for r in model_rows(busy_fleet(), History(), Choice())}

    assert status == {
        PHI: "no such file: /srv/models/phi-4.gguf",
        LLAMA: "61% weights ~12s left",
        QWEN: "pinned",
        GEMMA: "idle 12m20s",
    }


def test_the_status_of_isolated_instances():
    """A ready model whose instances are all isolated shows the error code that isolated them."""
    fleet = busy_fleet()
    nodes = tuple(
        replace(n, instances=tuple(replace(i, failing="engine_500") for i in n.instances))
        for n in fleet.nodes
    )
    status = {r.id: r.status for r in model_rows(replace(fleet, nodes=nodes), History(), Choice())}
    assert status[GEMMA] == "isolated: engine_500"


def test_an_idle_model_shows_when_it_unloads():
    """An idle model with a TTL shows the time until it is unloaded."""
    fleet = busy_fleet()
    qwen, gemma, *rest = fleet.models
    fleet = replace(fleet, models=(qwen, replace(gemma, unload_at=NOW + 65), *rest))

    assert {r.status for r in model_rows(fleet, History(), Choice()) if r.id == GEMMA} == {
        "unloads in 1m05s"
    }


def test_the_summary_line():
    """The summary counts nodes, models, devices, memory and waiting requests."""
    facts = summarize(busy_fleet(), History())

    assert (facts.nodes, facts.models, facts.devices) == ("2/3", "2/4", 5)
    assert (facts.queue, facts.active, facts.memory) == (3, 3, "119.4G/352.8G 34%")


def test_the_summary_of_an_empty_fleet():
    """A fleet without nodes and models causes no division by zero."""
    facts = summarize(empty_fleet(), History())

    assert (facts.nodes, facts.models, facts.memory, facts.errors) == (
        "0/0",
        "0/0",
        "0M/0M –",
        "0%",
    )


def test_a_description_includes_the_placement_reason():
    """The description of a model includes each instance with its memory and the scheduler's reason."""
    fleet = busy_fleet()
    facts = dict(describe(fleet.models[0], fleet, History()))

    assert facts["  why here"] == "only beast has two free devices"
    assert facts["beast/0-1"] == "ready, pinned"
    assert facts["first token"] == "p50 84ms  p95 310ms"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.04, "0"), (0.44, "0.4"), (42.1, "42"), (3_900, "3.9k")]
)
def test_rates_are_formatted_briefly(value: float, text: str):
    """A formatted rate fits into five cells."""
    assert show_rate(value) == text


def test_the_filter_of_requests():
    """A request matches if its id, state, model, key and node contain every word."""
    found = sample_requests()

    assert [r.id for r in request_rows(found, "")] == [
        *("req-0042", "req-0012", "req-0003", "req-0001", "req-0060", "req-0061"),
    ]
    assert [r.id for r in request_rows(found, "qwen ADA")] == ["req-0042", "req-0060"]
    assert [r.state for r in request_rows(found, "upstream")] == ["upstream_failed"]


def test_a_request_row_has_times_and_speed():
    """The speed excludes the time to the first token."""
    done = next(r for r in request_rows(sample_requests(), "0060"))

    assert (done.ttft, done.total, done.tokens, done.speed) == ("84ms", "5.1s", "70>200", "40.0")


def test_the_keymap_is_validated():
    """A key for an unknown action is an error that suggests the nearest_names name."""
    assert validate_keymap({"logs": "f9"}) == {"logs": "f9"}
    with pytest.raises(ConfigError) as failed:
        validate_keymap({"log": "f9"})
    assert "'logs'" in failed.value.hints[0]


def test_the_palette_lists_models_and_nodes():
    """The palette lists the views and the gateway's log, and with a fleet each model and node by name."""
    assert {c.name for c, *_ in palette_entries(None)} == {
        *(
            ScreenCommand.OVERVIEW,
            ScreenCommand.MODELS,
            ScreenCommand.GPUS,
            ScreenCommand.REQUESTS,
            ScreenCommand.EVENTS,
            ScreenCommand.LOGS,
        ),
    }
    found = [(title, c) for c, title, _ in palette_entries(busy_fleet())]
    assert (f"Load {PHI}", Command("load", PHI)) in found
    assert ("Go to node attic", Command(ScreenCommand.NODE, "attic")) in found


@given(st.text(max_size=40))
def test_log_lines_contain_no_control_characters(line: str):
    """Control characters that an engine writes are removed."""
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in strip_control(line))


def test_colors_are_removed_from_log_lines():
    """Escape sequences are removed, text is kept."""
    assert strip_control("\x1b[2m12:00\x1b[0m \x1b[32m INFO\x1b[0m ready") == "12:00  INFO ready"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("load qwen3", Command("load", "qwen3")),
        ("load qwen3 --gpu n2/1 --gpu n2/2", Command("load", "qwen3", "n2", (1, 2))),
        ("load 'a b' --node n1", Command("load", "a b", "n1")),
        ("u qwen3", Command("unload", "qwen3")),
        ("filter beast !qwen", Command(ScreenCommand.FILTER, "beast !qwen")),
        ("filter", Command(ScreenCommand.FILTER)),
        ("sort vram", Command(ScreenCommand.SORT, "vram")),
        ("q", Command(ScreenCommand.QUIT)),
        ("gpus", Command(ScreenCommand.GPUS)),
    ],
)
def test_commands_are_parsed(line: str, command: Command):
    """A line has the meaning of the same words in a shell."""
    assert parse(line) == command


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("laod x", "unknown command 'laod'"),
        ("", "unknown command ''"),
        ("load", "load: a name is required"),
        ("sort weight", "unknown sort order 'weight'"),
        ("load x --gpu n1", "--gpu takes devices of one node"),
        ("load x --gpu n1/0 --gpu n2/0", "--gpu takes devices of one node"),
        ("load 'x", "No closing quotation"),
    ],
)
def test_invalid_commands_are_rejected(line: str, words: str):
    """The error of an invalid line says what is wrong with it."""
    with pytest.raises(BadRequest, match=words.replace("'", ".")):
        parse(line)


@given(st.text())
def test_the_parser_accepts_or_rejects_any_text(line: str):
    """Any text is either a command or raises BadRequest."""
    with suppress(BadRequest):
        assert parse(line).name in COMMAND_NAMES


def test_every_state_has_a_sort_position():
    """The default order covers every state."""
    fleet = busy_fleet()
    for state in ModelState:
        one = replace(fleet, models=(replace(fleet.models[0], state=state),))
        assert model_rows(one, History(), Choice(sort=Sort.STATE))
