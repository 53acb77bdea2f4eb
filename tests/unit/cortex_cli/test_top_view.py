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
    Part,
    Segment,
    Share,
    colors,
    segment_text,
    segments,
    shares,
    spark,
)
from cortex_cli.tui.command_palette import offers
from cortex_cli.tui.commands import Command, Verb, parse
from cortex_cli.tui.history import SAMPLES, History
from cortex_cli.tui.keys import remapped
from cortex_cli.tui.screens.logs import plain
from cortex_cli.tui.view import Choice, Sort, describe, passes, rows, show_rate, summary
from cortex_cli.tui.widgets.requests import request_rows
from cortex_common.errors import BadRequest, ConfigError
from cortex_common.schema.fleet import FleetSnapshot, ModelState

parts = st.builds(Share, st.sampled_from(Part), st.floats(0, 1e6), st.text(max_size=12))


@given(st.lists(parts, max_size=12), st.integers(0, 200))
def test_segments_fill_the_bar_exactly(found: list[Share], width: int):
    """Whatever the shares, the segments are as wide as the bar, and none is empty."""
    drawn = segments(found, width)

    assert sum(s.width for s in drawn) == width
    assert all(s.width > 0 for s in drawn)


@given(st.lists(parts, min_size=1, max_size=12), st.integers(1, 200))
def test_segments_are_in_proportion(found: list[Share], width: int):
    """A share is drawn less than a cell away from its exact width."""
    total = sum(s.mb for s in found)
    for part in Part:
        exact = width * sum(s.mb for s in found if s.part is part) / total if total else 0
        pieces = sum(s.part is part for s in found)
        shown = sum(s.width for s in segments(found, width) if s.part is part)
        if total:
            assert abs(shown - exact) <= max(1, pieces)


@given(st.sampled_from(Part), st.text("abc-/.", max_size=30), st.integers(0, 60), st.booleans())
def test_a_segment_is_as_wide_as_it_says(part: Part, label: str, width: int, ascii_only: bool):
    """The text of a segment has its width, and with --ascii holds nothing but ASCII."""
    text = segment_text(Segment(part, label, width), ascii_only=ascii_only)

    assert len(text) == width
    assert text.isascii() or not ascii_only


def test_shares_of_a_device_sum_up_to_its_memory():
    """Models, foreign, promised, other and free memory are all that a device has."""
    for node in busy_fleet().nodes:
        for device in node.devices:
            found = shares(device, node.instances)
            assert sum(s.mb for s in found) == pytest.approx(device.vram_total_mb)


def test_a_device_shows_who_uses_it():
    """Each instance on a device is a share of its own, as large as measured there."""
    beast = busy_fleet().nodes[0]
    found = {s.label: s.mb for s in shares(beast.devices[0], beast.instances) if s.label}

    assert found == {QWEN: 34_900, GEMMA: 12_000}


def test_a_ghost_shows_what_a_plan_would_take():
    """Planned memory stands behind what is used, and is taken from what is free."""
    beast = busy_fleet().nodes[0]
    plain = shares(beast.devices[1], beast.instances)
    planned = shares(beast.devices[1], beast.instances, [Ghost("beast", 1, PHI, 9_000)])

    def free(found: list[Share]) -> float:
        return sum(s.mb for s in found if s.part is Part.FREE)

    assert Share(Part.GHOST, 9_000, PHI) in planned
    assert free(plain) - free(planned) == 9_000


@given(st.lists(st.none() | st.floats(0, 100), max_size=80), st.integers(0, 60), st.booleans())
def test_a_curve_has_its_width(values: list[float | None], width: int, ascii_only: bool):
    """A history is exactly as wide as asked for, whatever is known."""
    assert len(spark(values, 0, 100, width, ascii_only=ascii_only)) == width


def test_a_curve_has_a_fixed_scale():
    """A constant 95 % looks high, and nothing but full looks full."""
    assert spark([95, 95], 0, 100, 2, ascii_only=False) == "██"
    assert spark([0, 50, 100], 0, 100, 3, ascii_only=False) == "▁▄█"


@given(st.sets(st.text(max_size=6), max_size=PALETTE))
def test_few_models_have_different_colours(models: set[str]):
    """As long as the palette has enough colours, no two models share one."""
    assert len(set(colors(models, {}).values())) == len(models)


@given(st.sets(st.text(max_size=6), min_size=1), st.text(max_size=6))
def test_a_model_keeps_its_colour(models: set[str], newcomer: str):
    """When a model comes, the others stay as they are."""
    before = colors(models, {})
    after = colors({*models, newcomer}, before)

    assert {m: after[m] for m in models} == before


def later(snapshot: FleetSnapshot, seconds: float, **counters: int) -> FleetSnapshot:
    """The same fleet some seconds on, with the first model's counters grown."""
    first, *rest = snapshot.models
    grown = replace(first, **{k: getattr(first, k) + v for k, v in counters.items()})
    return replace(snapshot, at=snapshot.at + seconds, models=(grown, *rest))


def test_rates_come_from_two_snapshots():
    """Ten requests and a hundred tokens in five seconds are two and twenty a second."""
    one = busy_fleet()
    history = History().after(one).after(later(one, 5, requests=10, tokens_out=100))

    assert (history.rates[QWEN].requests, history.rates[QWEN].tokens) == (2.0, 20.0)


def test_one_snapshot_has_no_rates():
    """Before a second snapshot there is nothing to say about rates."""
    assert History().after(busy_fleet()).rates == {}


def test_a_restarted_gateway_gives_no_negative_rate():
    """Counters that begin anew with another gateway start the window anew."""
    one = busy_fleet()
    two = replace(later(one, 5, requests=-1000), started_at=one.started_at + 100)

    assert History().after(one).after(two).rates == {}


def test_a_history_does_not_grow():
    """However long it is watched, only the last samples are kept."""
    snapshot, history = busy_fleet(), History()
    for _ in range(SAMPLES + 20):
        snapshot = later(snapshot, 1)
        history = history.after(snapshot)

    assert {len(series) for series in history.utilization.values()} == {SAMPLES}


def test_snapshots_within_a_second_are_one_sample():
    """Four snapshots a second do not make the history four times as fast."""
    one = busy_fleet()
    history = History().after(one).after(later(one, 0.25)).after(later(one, 0.5))

    assert len(history.samples) == 1


def test_failed_and_loading_models_come_first():
    """The default order puts what needs a look on top, then names."""
    assert [r.id for r in rows(busy_fleet(), History(), Choice())] == [PHI, LLAMA, QWEN, GEMMA]


@pytest.mark.parametrize(
    ("sort", "first"),
    [(Sort.NAME, GEMMA), (Sort.VRAM, QWEN), (Sort.QUEUE, LLAMA), (Sort.TTFT, QWEN)],
)
def test_orders(sort: Sort, first: str):
    """Numbers are sorted from the greatest, names from a."""
    assert rows(busy_fleet(), History(), Choice(sort=sort))[0].id == first


@given(st.sampled_from(Sort))
def test_every_order_keeps_every_model(sort: Sort):
    """Sorting loses and doubles nothing, in either direction."""
    expected = {m.id for m in busy_fleet().models}
    for reverse in (False, True):
        shown = [r.id for r in rows(busy_fleet(), History(), Choice(sort=sort, reverse=reverse))]
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
def test_the_filter(words: str, found: set[str]):
    """A model passes when it holds every word in name, alias, state, harness or node, and no !word."""
    assert {m.id for m in busy_fleet().models if passes(m, words)} == found


def test_a_row_says_what_will_become_of_it():
    """The last column tells a load's progress, a pin, an idle time, or why it failed."""
    until = {r.id: r.until for r in rows(busy_fleet(), History(), Choice())}

    assert until == {
        PHI: "no such file: /srv/models/phi-4.gguf",
        LLAMA: "61% weights ~12s left",
        QWEN: "pinned",
        GEMMA: "idle 12m20s",
    }


def test_a_model_that_fails_though_it_is_ready_says_so():
    """Its instances are left alone for a while, and requests for it are refused meanwhile."""
    fleet = busy_fleet()
    nodes = tuple(
        replace(n, instances=tuple(replace(i, failing="engine_500") for i in n.instances))
        for n in fleet.nodes
    )
    until = {r.id: r.until for r in rows(replace(fleet, nodes=nodes), History(), Choice())}
    assert until[GEMMA] == "left alone: engine_500"


def test_an_idle_model_counts_down():
    """A model with a time to live shows when it goes."""
    fleet = busy_fleet()
    qwen, gemma, *rest = fleet.models
    fleet = replace(fleet, models=(qwen, replace(gemma, unload_at=NOW + 65), *rest))

    assert {r.until for r in rows(fleet, History(), Choice()) if r.id == GEMMA} == {
        "unloads in 1m05s"
    }


def test_the_summary_counts_the_fleet():
    """The line on top has nodes, models, memory and what waits."""
    facts = summary(busy_fleet(), History())

    assert (facts.nodes, facts.models, facts.devices) == ("2/3", "2/4", 5)
    assert (facts.queue, facts.active, facts.memory) == (3, 3, "119.4G/352.8G 34%")


def test_the_summary_of_nothing():
    """A gateway without nodes and models is drawn, not divided by zero."""
    facts = summary(empty_fleet(), History())

    assert (facts.nodes, facts.models, facts.memory, facts.errors) == (
        "0/0",
        "0/0",
        "0M/0M –",
        "0%",
    )


def test_a_description_says_why_it_is_there():
    """All about a model includes each instance, its memory and the scheduler's reason."""
    fleet = busy_fleet()
    facts = dict(describe(fleet.models[0], fleet, History()))

    assert facts["  why here"] == "only beast has two free devices"
    assert facts["beast/0-1"] == "ready, pinned"
    assert facts["first token"] == "p50 84ms  p95 310ms"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.04, "0"), (0.44, "0.4"), (42.1, "42"), (3_900, "3.9k")]
)
def test_rates_are_short(value: float, text: str):
    """A rate fits into four or five cells."""
    assert show_rate(value) == text


def test_the_filter_of_requests_looks_at_all_that_names_them():
    """Every word of the filter must be in id, state, model, key or node."""
    found = sample_requests()

    assert [r.id for r in request_rows(found, "")] == [
        *("req-0042", "req-0012", "req-0003", "req-0001", "req-0060", "req-0061"),
    ]
    assert [r.id for r in request_rows(found, "qwen ADA")] == ["req-0042", "req-0060"]
    assert [r.state for r in request_rows(found, "upstream")] == ["upstream_failed"]


def test_a_request_row_tells_times_and_speed():
    """The speed is that of the answer alone, without the time to its first token."""
    done = next(r for r in request_rows(sample_requests(), "0060"))

    assert (done.ttft, done.total, done.tokens, done.speed) == ("84ms", "5.1s", "70>200", "40.0")


def test_keys_can_be_chosen_by_name():
    """A key for a name that is none is an error which tells the nearest."""
    assert remapped({"logs": "f9"}) == {"logs": "f9"}
    with pytest.raises(ConfigError) as failed:
        remapped({"log": "f9"})
    assert "'logs'" in failed.value.hints[0]


def test_the_palette_offers_models_and_nodes():
    """Without a fleet the palette has the views and the gateway's log; with one, each model and node by name."""
    assert {c.verb for c, *_ in offers(None)} == {
        *(Verb.OVERVIEW, Verb.MODELS, Verb.GPUS, Verb.REQUESTS, Verb.EVENTS, Verb.LOGS),
    }
    found = [(title, c) for c, title, _ in offers(busy_fleet())]
    assert (f"Load {PHI}…", Command(Verb.LOAD, PHI)) in found
    assert ("Go to node attic", Command(Verb.NODE, "attic")) in found


@given(st.text(max_size=40))
def test_lines_of_a_log_move_no_cursor(line: str):
    """Whatever an engine writes, what is drawn holds no control character."""
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in plain(line))


def test_colours_of_a_log_leave_no_trace():
    """An engine's escapes vanish, its text stays."""
    assert plain("\x1b[2m12:00\x1b[0m \x1b[32m INFO\x1b[0m ready") == "12:00  INFO ready"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("load qwen3", Command(Verb.LOAD, "qwen3")),
        ("load qwen3 --gpu n2/1 --gpu n2/2", Command(Verb.LOAD, "qwen3", "n2", (1, 2))),
        ("load 'a b' --node n1", Command(Verb.LOAD, "a b", "n1")),
        ("u qwen3", Command(Verb.UNLOAD, "qwen3")),
        ("filter beast !qwen", Command(Verb.FILTER, "beast !qwen")),
        ("filter", Command(Verb.FILTER)),
        ("sort vram", Command(Verb.SORT, "vram")),
        ("q", Command(Verb.QUIT)),
        ("gpus", Command(Verb.GPUS)),
    ],
)
def test_the_command_line(line: str, command: Command):
    """A line means what the same words mean on the shell."""
    assert parse(line) == command


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("laod x", "there is no command 'laod'"),
        ("", "there is no command ''"),
        ("load", "load: say which"),
        ("sort weight", "sort by one of name"),
        ("load x --gpu n1", "--gpu takes devices of one node"),
        ("load x --gpu n1/0 --gpu n2/0", "--gpu takes devices of one node"),
        ("load 'x", "No closing quotation"),
    ],
)
def test_a_wrong_line_is_told(line: str, words: str):
    """A line that is not understood says what is wrong with it."""
    with pytest.raises(BadRequest, match=words.replace("'", ".")):
        parse(line)


@given(st.text())
def test_no_line_breaks_the_parser(line: str):
    """Anything that is typed is either a command or an error that can be shown."""
    with suppress(BadRequest):
        assert parse(line).verb in Verb


def test_states_are_all_ordered():
    """A state that is added has a place in the default order."""
    fleet = busy_fleet()
    for state in ModelState:
        one = replace(fleet, models=(replace(fleet.models[0], state=state),))
        assert rows(one, History(), Choice(sort=Sort.STATE))
