from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest.mock import call, patch

import pytest
from rich.style import Style
from sample_fleet import (
    GEMMA,
    LLAMA,
    NOW,
    PHI,
    QWEN,
    busy_fleet,
    empty_fleet,
    large_fleet,
    sample_trail,
)
from textual.command import CommandList
from textual.pilot import Pilot
from textual.widgets import Input, RichLog, Static
from top_rig import FedSource, RecordingOperator, top, until

from cortex_cli.tui.app import Top
from cortex_cli.tui.command_palette import Palette
from cortex_cli.tui.commands import Command, ScreenCommand
from cortex_cli.tui.keys import key_rows
from cortex_cli.tui.options import ScreenOptions
from cortex_cli.tui.screens.dialogs import Confirm, Page
from cortex_cli.tui.screens.logs import LogScreen
from cortex_cli.tui.widgets.footer import KeyLine
from cortex_cli.tui.widgets.line import InputLine
from cortex_cli.tui.widgets.lines import Lines
from cortex_cli.tui.widgets.models import ModelTable
from cortex_cli.tui.widgets.requests import RequestTable
from cortex_cli.tui.widgets.summary import SummaryLine
from cortex_cli.watch import ConnectionLost
from cortex_common.errors import AuthenticationFailed, BadRequest, Conflict, DoesNotFit, NotFound
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.operations import (
    DrainNodeRequest,
    EvictModelRequest,
    LoadModelRequest,
    NodeRequest,
    PinModelRequest,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import ApplyDefragRequest, DefragRequest, LedgerLine, PlanView
from cortex_common.schema.requests import CancelRequest, RequestList

WIDE = (140, 40)


@asynccontextmanager
async def running(app: Top, size: tuple[int, int] = WIDE) -> AsyncIterator[Pilot[None]]:
    """Run the app on a terminal of this size, from its first drawing."""
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield pilot


def drawn(lines: Lines) -> list[str]:
    """Return the visible lines without frame and scrollbar."""
    inside = lines.scrollable_content_region
    return [lines.render_line(y).text.rstrip() for y in range(inside.height)]


def visible_models(app: Top) -> list[str]:
    """Return the models of the table from top to bottom."""
    head, *rows = drawn(app._view.table)
    at = head.index("NAME")
    return [row[at:].split("  ")[0] for row in rows if row]


def text_of(app: Top, selector: str) -> str:
    """Return the text of a static widget."""
    return str(app.query_one(selector, Static).content)


def key_line(app: Top) -> str:
    """Return the line of keys."""
    return str(app.query_one(KeyLine).render())


def greyed(app: Top) -> set[str]:
    """Return the actions that are greyed in the line of keys."""
    line = app.query_one(KeyLine).render()
    return {
        line.plain[span.start : span.end].split()[-1]
        for span in line.spans
        if isinstance(span.style, Style) and span.style.dim
    }


FLEET_KEYS = {"load", "unload", "pin", "evict", "defrag"}
"""Actions of the models view that are greyed without a gateway or on a read-only screen."""


async def test_the_table_lists_the_catalogue():
    """The models are in the default order, by urgency."""
    app = top(busy_fleet())
    async with running(app):
        assert visible_models(app) == [PHI, LLAMA, QWEN, GEMMA]


async def test_load_shows_its_plan_first():
    """`l` shows the plan, also in the bars, and loads after confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        before = drawn(app._view.devices)
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        text = " ".join(str(s.content) for s in app.screen.query(Static))
        assert f"{PHI} would be loaded on beast/1: most available memory, 8.8G" in text
        assert drawn(app._view.devices) != before
        assert operator.calls == []
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [("load", LoadModelRequest(model=PHI, wait=True))]
        assert drawn(app._view.devices) == before
        await until(pilot, lambda: bool(app._notifications))
        assert [n.title for n in app._notifications] == [f"cortex models load {PHI}"]


async def test_a_model_that_does_not_fit_shows_why():
    """If a model can't be loaded, `l` shows the reason for each device without a question."""
    ledger = (
        LedgerLine(
            node="beast", device=0, reason="needs 68.2 GiB, 61.0 available", missing_mb=7373
        ),
    )
    plan = PlanView(model="", action="impossible", reason="it fits nowhere", ledger=ledger)
    operator = RecordingOperator(plan=plan)
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, Page))
        text = str(app.screen.query_one(Static).content)

        assert "needs 68.2 GiB, 61.0 available" in text
        assert operator.calls == []


async def test_evict_requires_confirmation():
    """`e` evicts one instance after confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("down", "down", "e")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        text = " ".join(str(s.content) for s in app.screen.query(Static))
        assert f"evicts {QWEN} from beast: frees 68.2G, idle 1.0s, after 3 requests" in text
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [("evict", EvictModelRequest(model=QWEN))]


async def test_a_pinned_model_is_not_evicted():
    """The refusal to evict a pinned model is shown without a question."""
    operator = RecordingOperator()
    operator.eviction_error = Conflict("qwen-1 is pinned", hints=("cortex models unpin",))
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("down", "down", "e")
        await until(pilot, lambda: bool(app._notifications))

        assert not isinstance(app.screen, Confirm)
        assert "is pinned" in next(iter(app._notifications)).message


async def test_unload_shows_its_effects():
    """The question shows the freed memory and the requests in flight; an unloaded model causes no question."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("u")
        await until(pilot, lambda: bool(app._notifications))
        assert f"{PHI}: not loaded" in next(iter(app._notifications)).message
        await pilot.press("down", "down", "u")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        text = " ".join(str(s.content) for s in app.screen.query(Static))

        assert f"frees 68.2G on beast: {QWEN}" in text
        assert "3 requests in flight" in text


async def test_draining_shows_its_moves_first():
    """The question shows where each model of the node would go."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("colon", *"drain beast", "enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        text = " ".join(str(s.content) for s in app.screen.query(Static))

        assert f"moves {GEMMA} (11.7G) to mule/1 in about 8.0s" in text


async def test_pin_toggles():
    """`p` pins unpinned models and unpins pinned ones without confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("down", "p")
        await until(pilot, lambda: len(operator.calls) == 1)
        await pilot.press("down", "p")
        await until(pilot, lambda: len(operator.calls) == 2)

        assert operator.calls == [
            ("pin", PinModelRequest(model=LLAMA)),
            ("unpin", UnpinModelRequest(model=QWEN)),
        ]


async def test_pin_and_unpin_commands():
    """`:pin` and `:unpin` do not depend on the current state."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        for number, line in enumerate((f"pin {QWEN}", f"unpin {GEMMA}"), 1):
            await pilot.press("colon")
            app.query_one("#input-line", Input).value = line
            await pilot.press("enter")
            await until(pilot, lambda n=number: len(operator.calls) == n)

        assert operator.calls == [
            ("pin", PinModelRequest(model=QWEN)),
            ("unpin", UnpinModelRequest(model=GEMMA)),
        ]


@pytest.mark.parametrize(
    ("downs", "call"),
    [(1, ("uncordon", NodeRequest(node="mule"))), (2, ("cordon", NodeRequest(node="beast")))],
)
async def test_cordon_requires_confirmation(downs: int, call: tuple[str, NodeRequest]):
    """`c` cordons or uncordons the node of the model under the cursor after confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press(*["down"] * downs, "c")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [call]


async def test_defrag_shows_its_moves_first():
    """`D` shows the moves, also in the bars, and makes exactly those after confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        text = " ".join(str(s.content) for s in app.screen.query(Static))
        assert "moves google/gemma-3-12b from beast/0 to beast/1" in text
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [
            ("defrag", ApplyDefragRequest(request=DefragRequest(), plan="p1"))
        ]


async def test_defrag_falls_back_to_moves_between_nodes():
    """If moves within a node do not help, `D` shows moves between nodes."""
    operator = RecordingOperator()
    operator.needs_cross_node = True
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [
            ("defrag", ApplyDefragRequest(request=DefragRequest(cross_node=True), plan="p1"))
        ]


async def test_commands_require_confirmation():
    """Commands require the same confirmation as keys."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        for line, call in {
            "drain beast": ("drain", DrainNodeRequest(node="beast")),
            "evict qwen3": ("evict", EvictModelRequest(model="qwen3")),
            "cordon mule": ("cordon", NodeRequest(node="mule")),
            "uncordon beast": ("uncordon", NodeRequest(node="beast")),
            "unload qwen3": ("unload", UnloadModelRequest(model="qwen3")),
        }.items():
            operator.calls.clear()
            await pilot.press("colon")
            app.query_one("#input-line", Input).value = line
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert operator.calls == []
            await pilot.press("y")
            await until(pilot, lambda: bool(operator.calls))

            assert operator.calls == [call]


async def test_unload_requires_confirmation():
    """`u` unloads the model under the cursor after confirmation."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("down", "down", "u")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert operator.calls == []
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [("unload", UnloadModelRequest(model=QWEN))]


async def test_a_question_can_be_declined():
    """n, escape, and enter on the focused button decline."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("down", "down")
        for key in ("n", "escape", "enter"):
            await pilot.press("u")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press(key)
            await until(pilot, lambda: not isinstance(app.screen, Confirm))

            assert operator.calls == []


async def test_actions_apply_to_marked_models():
    """`space` marks models; the next action applies to all marked ones."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("space", "space", "p")
        await until(pilot, lambda: len(operator.calls) == 2)

        assert operator.calls == [("pin", PinModelRequest(model=m)) for m in sorted((PHI, LLAMA))]


async def test_an_error_is_shown_with_its_hint():
    """An error of the gateway is shown with its hint, and the app continues."""
    error = DoesNotFit("needs 68 GiB on one device", hints=("evict something",))
    app = top(busy_fleet(), operator=RecordingOperator(error))
    async with running(app) as pilot:
        await pilot.press("p")
        await until(pilot, lambda: bool(app._notifications))

        assert [(n.message, n.severity) for n in app._notifications] == [
            ("needs 68 GiB on one device\nevict something", "error")
        ]


async def test_read_only_refuses_keys():
    """With --read-only, keys neither call the gateway nor ask questions."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator, read_only=True)
    async with running(app) as pilot:
        assert greyed(app) == FLEET_KEYS
        for key in ("l", "u", "e", "p", "c", "D"):
            await pilot.press(key)
            await pilot.pause()

            assert operator.calls == []
            assert not isinstance(app.screen, Confirm)


async def test_read_only_refuses_commands():
    """--read-only applies to the command line too."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator, read_only=True)
    async with running(app) as pilot:
        await pilot.press("colon", *"load x", "enter")
        await until(pilot, lambda: bool(app._notifications))

        assert operator.calls == []


async def test_the_load_command_accepts_a_device():
    """`:load x --gpu beast/1` loads on that device."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("colon")
        app.query_one("#input-line", Input).value = "load qwen3 --gpu beast/1"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))

        assert operator.calls == [
            ("load", LoadModelRequest(model="qwen3", node="beast", devices=(1,), wait=True))
        ]


async def test_the_filter_narrows_as_it_is_typed():
    """`/` filters while typing; escape closes the line, then clears the filter."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("slash", *"gemma")
        await until(pilot, lambda: visible_models(app) == [GEMMA])
        await pilot.press("escape")
        assert visible_models(app) == [GEMMA]
        await pilot.press("escape")

        assert len(visible_models(app)) == 4


async def test_the_cursor_stays_on_its_model():
    """The cursor follows its model when the order changes."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        table = app.query_one(ModelTable)
        await pilot.press("down")
        assert table.current == LLAMA
        await pilot.press("s")
        assert table.current == LLAMA
        await pilot.press("S")

        assert table.current == LLAMA
        assert visible_models(app).index(LLAMA) == table.cursor_row


def many() -> FleetSnapshot:
    """Return a fleet that does not fit on a screen."""
    return large_fleet(nodes=8, devices=8, models=100)


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (["end"], 99),
        (["end", "home"], 0),
        (["j", "down", "k"], 1),
        (["pagedown", "pagedown", "pageup"], 9),
    ],
)
async def test_the_cursor_stays_visible(keys: list[str], row: int):
    """The cursor moves by lines, by pages and to both ends, and stays visible."""
    app = top(many())
    async with running(app, (140, 32)) as pilot:
        table = app.query_one(ModelTable)
        page = table.page
        await pilot.press(*keys)

        assert table.cursor_row == (row if row != 9 else page - 1)
        assert str(table.current) in visible_models(app)


async def test_only_changed_lines_are_redrawn():
    """If one visible model changes, only its row is redrawn."""
    before = many()
    app = top(before)
    async with running(app):
        table = app.query_one(ModelTable)
        first, *rest = before.models
        app._state.update(replace(before, models=(replace(first, in_flight=77), *rest)))
        with patch.object(table, "refresh_line") as redrawn:
            app._draw(force=True)

        assert redrawn.call_args_list == [call(1)]


async def test_clicks_move_the_cursor_and_describe():
    """A click moves the cursor, a second one describes the model, and one below all rows does nothing."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        table = app.query_one(ModelTable)
        await pilot.click(table, offset=(12, 4))
        assert table.current == QWEN
        await pilot.click(table, offset=(12, 12))
        assert table.current == QWEN
        assert not isinstance(app.screen, Page)
        await pilot.click(table, offset=(12, 4))

        await until(pilot, lambda: isinstance(app.screen, Page))


@pytest.mark.parametrize(("view", "name"), [("3", "devices"), ("5", "events")])
async def test_widgets_without_a_cursor_scroll(view: str, name: str):
    """In the views of devices and events, the movement keys scroll."""
    app = top(many(), *sample_trail() * 20)
    async with running(app, (100, 30)) as pilot:
        await pilot.press(view, "home")
        lines = app.query_one(f"#{name}", Lines)
        await until(pilot, lambda: lines.scroll_y == 0)
        first = drawn(lines)[0]
        await pilot.press("j", "j")
        await until(pilot, lambda: lines.scroll_y == 2)

        assert drawn(lines)[0] != first


async def test_events_are_followed_until_scrolled_up():
    """The newest entry is at the bottom; after scrolling up, new entries do not move the view."""
    source = FedSource(busy_fleet(), *sample_trail() * 20)
    app = Top(source, RecordingOperator(), ScreenOptions("gw", interval_s=0.25))
    async with running(app, (100, 30)) as pilot:
        events = app._view.events
        last, unseen = entry("last_of_all"), entry("unseen")
        await pilot.press("5")
        source.feed(last)
        await until(pilot, lambda: "last_of_all" in drawn(events)[-1])
        await pilot.press("k")
        await until(pilot, lambda: events.scroll_y < events.max_scroll_y)
        at = events.scroll_y
        source.feed(unseen)
        await until(pilot, lambda: events._count == 82)

        assert events.scroll_y == at


def entry(name: str) -> AuditEntry:
    """Return an entry of this name."""
    return sample_trail()[0].model_copy(update={"event": name})


async def test_new_snapshots_change_the_table():
    """A finished load is shown in the table, and an audit entry in the events."""
    before = busy_fleet()
    beast, mule, attic = before.nodes
    ready = replace(mule.instances[0], state=InstanceState.READY)
    models = tuple(replace(m, state=m.state.READY) if m.id == LLAMA else m for m in before.models)
    after = replace(
        before, at=NOW + 5, nodes=(beast, replace(mule, instances=(ready,)), attic), models=models
    )
    source = FedSource(before)
    app = Top(source, RecordingOperator(), ScreenOptions("gw", interval_s=0.25))
    async with running(app) as pilot:
        await pilot.press("5")
        source.feed(after)
        source.feed(sample_trail()[2])
        await until(pilot, lambda: bool(drawn(app._view.events)[0]))
        text = drawn(app._view.events)[0]
        await until(pilot, lambda: app.snapshot == after)
        await pilot.press("1", "r")

        assert "instance_ready   node mule   node=mule model=meta/Llama-70B" in text
        assert "ready" in drawn(app.query_one(ModelTable))[2]


async def requests_of(pilot: Pilot[None], app: Top) -> RequestTable:
    """Return the requests table once it is filled."""
    await pilot.press("4")
    table = app.query_one(RequestTable)
    await until(pilot, lambda: table.row_count == 6)
    return table


async def test_cancel_requires_confirmation():
    """In the requests view `X` asks and cancels the request under the cursor, unless it has finished."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await requests_of(pilot, app)
        await pilot.press("down", "X")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert operator.calls == []
        await pilot.press("y")
        await until(pilot, lambda: bool(operator.calls))
        await pilot.press("down", "down", "down", "X")
        await until(
            pilot, lambda: any("already finished" in str(n.message) for n in app._notifications)
        )

        assert operator.calls == [("cancel", CancelRequest(request="req-0012"))]
        assert not isinstance(app.screen, Confirm)


async def test_a_cursor_on_top_of_the_requests_stays_there():
    """A cursor on the first row stays there when rows move; a cursor on another row follows it."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        table = await requests_of(pilot, app)
        before = operator.found
        one, two, *rest = before.active
        assert table.current == one.id
        operator.found = RequestList(at=NOW, active=(two, one, *rest))
        table.fetch()
        await until(pilot, lambda: table.current == two.id)
        await pilot.press("down")
        assert table.current == one.id
        operator.found = before
        table.fetch()
        await until(pilot, lambda: table.cursor_row == 0)

        assert table.current == one.id


@pytest.mark.parametrize("view", ["3", "4", "5"])
async def test_keys_of_hidden_models_are_disabled(view: str):
    """In views without models, their keys do nothing and are not in the line of keys."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press(view, "u", "e")
        await pilot.pause()

        assert not isinstance(app.screen, Confirm)
        assert ("cancel" in key_line(app), "unload" in key_line(app)) == (view == "4", False)


async def test_cancel_on_a_read_only_screen():
    """With --read-only, `X` does nothing."""
    app = top(busy_fleet(), read_only=True)
    async with running(app) as pilot:
        await requests_of(pilot, app)
        await pilot.press("X")
        await pilot.pause()

        assert not isinstance(app.screen, Confirm)


async def test_requests_are_filtered_and_described():
    """`/` filters requests too, and enter shows details."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        table = await requests_of(pilot, app)
        await pilot.press("slash", *"gemma", "enter")
        await until(pilot, lambda: table.row_count == 1)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Page))

        assert "upstream_failed" in str(app.screen.query_one(Static).content)


async def test_a_recording_has_no_requests():
    """For a recording, the requests view says why it is empty."""
    app = Top(FedSource(busy_fleet()), RecordingOperator(), ScreenOptions("file", live=False))
    async with running(app) as pilot:
        await pilot.press("4")
        await pilot.pause()
        table = app.query_one(RequestTable)

        assert (table.row_count, "recording" in str(table.border_title)) == (0, True)


async def test_logs_are_read_filtered_and_closed():
    """`L` follows the engine's log without its colors, `/` filters it, escape closes the filter, then the log."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, LogScreen))
        log = app.screen.query_one("#log", RichLog)
        await until(pilot, lambda: len(log.lines) == 3)
        assert [line.text.strip() for line in log.lines] == [
            *("INFO loading weights", "WARN slow disk", "ERROR no such file"),
        ]
        await pilot.press("slash", *"disk", "enter")
        await until(pilot, lambda: len(log.lines) == 1)
        await pilot.press("s", "m", "w")
        await pilot.press("slash", "escape")
        await until(pilot, lambda: len(log.lines) == 4)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, LogScreen))

        assert operator.logs == [PHI]


@pytest.mark.parametrize(
    ("keys", "name"),
    [(("5", "L"), "gateway"), (("colon", *"logs beast", "enter"), "beast")],
)
async def test_logs_of_daemons(keys: tuple[str, ...], name: str):
    """`L` in the events view follows the gateway's log, `:logs NODE` a node's."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press(*keys)
        await until(pilot, lambda: operator.logs == [name])


async def test_an_unavailable_log_shows_the_reason():
    """The frame of a log that is unavailable shows the gateway's error."""
    app = top(busy_fleet(), operator=RecordingOperator(NotFound("model 'x' has no instance")))
    async with running(app) as pilot:
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, LogScreen))
        frame = app.screen.query_one(".log")

        await until(pilot, lambda: "has no instance" in str(frame.border_title))


async def test_the_palette_runs_operations():
    """The palette finds a model by a part of its name, and the command works like its key."""
    operator = RecordingOperator()
    app = top(busy_fleet(), operator=operator)
    async with running(app) as pilot:
        await pilot.press("ctrl+p", *"load gem")
        await until(pilot, lambda: bool(app.screen.query("CommandList")))
        options = app.screen.query_one(CommandList)
        await until(
            pilot, lambda: options.option_count > 0 and GEMMA in str(options.options[0].prompt)
        )
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm))

        assert [ask.model for ask in operator.planned] == [GEMMA]


async def test_a_closed_palette_ignores_late_hits():
    """Hits that arrive after the palette was closed do not end the app."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette))
        palette = app.screen
        assert isinstance(palette, Palette)
        await pilot.press("escape")
        await until(pilot, lambda: not palette.query(CommandList))
        palette._list_visible = not palette._list_visible

        assert app.is_running


async def test_keys_can_be_changed():
    """A key of the client's configuration replaces the default one."""
    options = ScreenOptions("gw", interval_s=0.25, keys={"freeze": "f9"})
    app = Top(FedSource(busy_fleet()), RecordingOperator(), options)
    async with running(app) as pilot:
        await pilot.press("f")
        assert "FROZEN" not in text_of(app, "#summary")
        await pilot.press("f9")

        assert "FROZEN" in text_of(app, "#summary")


async def test_models_can_come_and_go():
    """The table follows a catalogue that shrinks and grows."""
    fleet = busy_fleet()
    source = FedSource(fleet)
    app = Top(source, RecordingOperator(), ScreenOptions("gw", interval_s=0.25))
    async with running(app) as pilot:
        source.feed(replace(fleet, models=fleet.models[:1]))
        await until(pilot, lambda: visible_models(app) == [QWEN])
        source.feed(fleet)
        await until(pilot, lambda: len(visible_models(app)) == 4)
        source.feed(empty_fleet())
        await until(pilot, lambda: visible_models(app) == [])


async def test_a_lost_gateway_is_a_state():
    """A lost gateway shows a banner and greys keys until it is reachable again."""
    operator = RecordingOperator()
    source = FedSource(busy_fleet())
    app = Top(source, operator, ScreenOptions("gw", interval_s=0.25))
    async with running(app) as pilot:
        assert greyed(app) == set()
        source.feed(ConnectionLost("connection refused", 4.0))
        banner = app.query_one("#banner", Static)
        await until(pilot, lambda: banner.has_class("visible"))
        assert "connection refused; retrying in 4s" in text_of(app, "#banner")
        assert text_of(app, "#summary").startswith(" cortex ? ")
        assert len(visible_models(app)) == 4
        await until(pilot, lambda: greyed(app) == FLEET_KEYS)
        await pilot.press("l")
        await pilot.pause()
        assert operator.planned == []
        source.feed(busy_fleet())
        await until(pilot, lambda: not banner.has_class("visible"))
        await until(pilot, lambda: not greyed(app))

        assert "live" in text_of(app, "#summary")


async def test_a_rejected_key_is_shown():
    """If the gateway rejects the key, the banner shows the reason."""
    app = top(AuthenticationFailed("the key is unknown"))
    async with running(app) as pilot:
        await until(pilot, lambda: "the key is unknown" in text_of(app, "#banner"))


async def test_freeze_holds_the_view():
    """`f` keeps what is shown while the fleet changes, and shows the newest when pressed again."""
    source = FedSource(busy_fleet())
    app = Top(source, RecordingOperator(), ScreenOptions("gw", interval_s=0.25))
    async with running(app) as pilot:
        await pilot.press("f")
        source.feed(empty_fleet())
        await until(pilot, lambda: app._state.latest == empty_fleet())
        await pilot.press("r")
        assert len(visible_models(app)) == 4
        await pilot.press("f")

        await until(pilot, lambda: visible_models(app) == [])


async def test_pages_about_a_model():
    """`d` and enter describe the model, `y` shows it as JSON, escape returns."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("down", "down")
        for key, words in {"d": "beast/0-1", "enter": "beast/0-1", "y": '"id"'}.items():
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, Page))
            assert words in str(app.screen.query_one(Static).content)
            await pilot.press("escape")

            assert not isinstance(app.screen, Page)


async def test_help_lists_every_key():
    """`?` lists each binding."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, Page))
        text = str(app.screen.query_one(Static).content)

        assert all(b.description in text for b in app.BINDINGS)  # type: ignore[union-attr]


async def test_views():
    """Numbers switch the view, and 1 returns to the overview."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        for key, view in {"2": "models", "3": "gpus", "4": "requests", "5": "events"}.items():
            await pilot.press(key)
            assert app.screen.has_class(f"view-{view}")
            await pilot.press("1")

            assert not app.screen.has_class(f"view-{view}")


@pytest.mark.parametrize("width", [140, 60, 30])
async def test_the_line_of_keys_is_not_truncated(width: int):
    """The line of keys starts with the help key and contains complete entries only."""
    app = top(busy_fleet())
    async with running(app, (width, 15)):
        text = key_line(app).strip().split("  ")

    assert text[0] == "? keys"
    assert {words.split(" ", 1)[1] for words in text} <= {does for _, does, _ in key_rows()}


async def test_keys_can_be_clicked():
    """Clicking a key in the line of keys presses it."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.click(KeyLine, offset=(key_line(app).index("filter"), 0))

        assert app.query_one(InputLine).is_open


async def test_the_interval_has_bounds():
    """`+` and `-` change the drawing interval between 0.25 and 10 seconds."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press(*["minus"] * 10)
        assert app._interval == 10.0
        await pilot.press(*["plus"] * 10)

        assert app._interval == 0.25


@pytest.mark.parametrize("size", [(200, 50), (140, 40), (100, 30), (79, 24), (60, 15), (30, 8)])
@pytest.mark.parametrize("fleet", [busy_fleet(), empty_fleet()])
async def test_every_size_is_drawn(size: tuple[int, int], fleet):
    """The app runs on any size of terminal, and the table needs no horizontal scrollbar."""
    app = top(fleet)
    async with running(app, size) as pilot:
        await pilot.pause()
        table = app.query_one(ModelTable)

        assert app.query_one(SummaryLine).content
        if size[0] >= 60:
            assert table.virtual_size.width <= table.size.width


async def test_names_are_not_markup():
    """A model name with markup or control characters is shown as plain text."""
    fleet = busy_fleet()
    evil = replace(fleet.models[0], id="[red]x[/] \x1b[2J", error="[bold]")
    app = top(replace(fleet, models=(evil,)))
    async with running(app) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Page))
        await pilot.press("escape", "p")
        await until(pilot, lambda: bool(app._notifications))

        assert visible_models(app)[0].startswith("[red]x[/]")
        assert "\x1b" not in visible_models(app)[0]


async def test_ascii_bars():
    """With --ascii, the bars contain only ASCII characters."""
    app = top(busy_fleet(), ascii_only=True)
    async with running(app):
        assert "".join(drawn(app._view.devices)).replace("°", "").isascii()


async def test_themes_of_textual():
    """All views can be drawn with themes of Textual, which have no model colors."""
    app = top(busy_fleet(), *sample_trail(), theme="ansi-dark")
    async with running(app) as pilot:
        for theme in ("ansi-dark", "ansi-light", "dracula"):
            app.run_command(Command(ScreenCommand.THEME, theme))
            for view in "12345":
                await pilot.press(view)
                await pilot.pause()

            assert app.theme == theme


async def test_an_unknown_theme():
    """An unknown theme is an error at the start, and a toast later."""
    with pytest.raises(BadRequest, match="unknown theme 'cortex-drak'") as error:
        top(busy_fleet(), theme="cortex-drak")
    app = top(busy_fleet())
    async with running(app) as pilot:
        app.run_command(Command(ScreenCommand.THEME, "cortex-drak"))
        await until(pilot, lambda: bool(app._notifications))

        assert error.value.hints == ("did you mean 'cortex-dark'?",)
        assert app.theme == "cortex-dark"


async def test_q_quits():
    """`q` quits without confirmation."""
    app = top(busy_fleet())
    async with running(app) as pilot:
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)
