from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sample_fleet import busy_fleet, empty_fleet

from cortex_cli.color import Paint
from cortex_cli.logs import write_engine_log
from cortex_cli.output import Kind, Output, as_text, live
from cortex_cli.render.details import node_text
from cortex_cli.render.fleet import (
    DEVICES,
    INSTANCES,
    MODELS,
    NODES,
    RoomRow,
    device_list,
    device_rows,
    instance_rows,
    problems,
    room_rows,
)
from cortex_cli.render.formats import to_yaml
from cortex_cli.render.json_values import rfc3339, to_plain
from cortex_cli.render.log import engine_line
from cortex_cli.render.status import status
from cortex_cli.render.table import Column, brief, printable, table
from cortex_common.log_buffer import LogLine
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.base import WireModel
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.fleet import (
    SNAPSHOT,
    FleetSnapshot,
    InstanceView,
    ModelView,
    NodeState,
    NodeView,
    SettingsView,
)
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.keys import KeyView
from cortex_common.schema.model_detail import SizeMeasurement
from cortex_common.schema.operations import PinView
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestList, RequestView

PLAIN = Paint()


def test_an_instance_on_a_lost_node_is_not_shown_as_in_use():
    """What its node last told of it is not what it is."""
    fleet = busy_fleet()
    lost = replace(fleet.nodes[0], state=NodeState.UNREACHABLE)
    shown = as_text(
        INSTANCES, instance_rows(replace(fleet, nodes=(lost,))), Output.TABLE, paint=PLAIN
    )
    assert shown.count("its node is unreachable") == len(lost.instances)


def test_an_instance_that_fails_though_it_is_ready_says_so():
    """Who is refused for it is sent here."""
    (node, *_) = busy_fleet().nodes
    failing = replace(
        node, instances=tuple(replace(i, failing="engine_500") for i in node.instances)
    )
    fleet = replace(busy_fleet(), nodes=(failing,))
    shown = as_text(INSTANCES, instance_rows(fleet), Output.TABLE, paint=PLAIN)
    ready = [i for i in node.instances if i.state is InstanceState.READY]
    assert shown.count("left alone: engine_500") == len(ready) > 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ps", as_text(INSTANCES, instance_rows(busy_fleet()), Output.TABLE, paint=PLAIN)),
        ("ps-wide", as_text(INSTANCES, instance_rows(busy_fleet()), Output.WIDE, paint=PLAIN)),
        ("models", as_text(MODELS, busy_fleet().models, Output.TABLE, paint=PLAIN)),
        ("nodes", as_text(NODES, busy_fleet().nodes, Output.TABLE, paint=PLAIN)),
        ("gpus", as_text(DEVICES, device_rows(busy_fleet()), Output.TABLE, paint=PLAIN)),
        ("status", status(busy_fleet(), "http://gw:8000", PLAIN)),
    ],
)
def test_tables_look_as_they_were_approved(name: str, text: str):
    """Each table of the sample fleet is, character for character, the one that was looked at and kept."""
    assert f"{text}\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_a_fleet_without_nodes_is_in_trouble():
    """A gateway that knows no node is reported as such."""
    assert problems(empty_fleet()) == ["the gateway knows no nodes"]


def test_an_engine_that_crashes_again_and_again_is_trouble():
    """Between its crashes the model is no failed one, and its node is up."""
    fleet = busy_fleet()
    beast = fleet.nodes[0]
    crashed = replace(beast.instances[1], state=InstanceState.LOADING, error="it crashed:\nboom")
    again = replace(fleet, nodes=(replace(beast, instances=(crashed,)),), models=())
    assert problems(again) == [f"model {crashed.model} is being restarted on beast: it crashed"]


def test_what_the_gateway_has_against_its_own_files_is_a_trouble():
    """Settings that it refused, and a certificate of it or of a node that ends soon."""
    fleet = empty_fleet()
    ends = Certificate("cert.pem", fleet.at)
    node = NodeView(name="n", endpoint="https://n:9090", state=NodeState.UP, certificates=(ends,))
    refused = SettingsView(fleet.at, "cortex.toml:3: unknown key")
    found = problems(replace(fleet, nodes=(node,), certificates=(ends,), settings=refused))

    assert found[0] == "the gateway runs by older settings: cortex.toml:3: unknown key"
    assert [t.partition(" expired on ")[0] for t in found[1:]] == [
        "the certificate in cert.pem",
        "node n: the certificate in cert.pem",
    ]


def test_json_document_has_version_kind_and_whole_items():
    """-o json is one document whose items carry every field of the snapshot, sizes in MiB."""
    fleet = busy_fleet()
    document = json.loads(as_text(MODELS, fleet.models, Output.JSON, paint=PLAIN))

    assert (document["apiVersion"], document["kind"]) == ("cortex/v1", "ModelList")
    assert [m["id"] for m in document["items"]] == [m.id for m in fleet.models]
    assert document["items"][0]["vram_mb"] == 69_800


def test_documents_differ_from_the_wire_in_times_alone():
    """Of a whole snapshot, every field is as the gateway sends it but for moments, which are RFC 3339."""
    fleet = busy_fleet()
    seen = to_plain(fleet)
    node, instance = seen["nodes"][0], seen["nodes"][0]["instances"][0]
    assert (seen["at"], instance["last_used"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:19Z")
    assert to_plain(empty_fleet())["started_at"] is None

    def without(value: object) -> object:
        if isinstance(value, dict):
            times = {
                "at",
                "started_at",
                "seen_at",
                "last_used",
                "unload_at",
                "read_at",
                "expires_at",
            }
            return {k: without(v) for k, v in value.items() if k not in times}
        return [without(v) for v in value] if isinstance(value, list) else value

    assert without(seen) == without(SNAPSHOT.dump_python(fleet, mode="json"))
    assert node["seen_at"].endswith("Z")


@given(st.floats(1, 253402300799), st.booleans())
def test_a_moment_reads_as_what_it_was(seconds: float, exact: bool):
    """RFC 3339 says the same moment, to the second or to the millisecond."""
    text = rfc3339(seconds, exact=exact)

    assert text is not None
    lost = seconds - datetime.fromisoformat(text).timestamp()
    assert -1e-4 <= lost < (1.1e-3 if exact else 1.0)


@pytest.mark.parametrize(
    ("value", "field", "text"),
    [
        (PinView(model="m", until=1_700_000_000.9), "until", "2023-11-14T22:13:20Z"),
        (PinView(model="m"), "until", None),
        (PinView(model="m", until=1e15), "until", "9999-12-31T23:59:59Z"),
        (
            LogLine(at=1_700_000_000.25, level="info", event="e", logger="l"),
            "at",
            "2023-11-14T22:13:20.250Z",
        ),
        (KeyView(name="k", origin="runtime", created=0.5), "created", "1970-01-01T00:00:00Z"),
    ],
)
def test_fractions_are_written_where_they_matter(value: WireModel, field: str, text: str | None):
    """A line of a log has milliseconds, a pin's end has none, and what never ends has null."""
    assert to_plain(value)[field] == text


def test_no_field_of_unix_seconds_is_without_its_mark():
    """Whatever documents show and calls Unix seconds is marked, or it would be written as a number."""
    told = {
        kind: set(re.findall(r"^ +(\w+): Unix seconds", kind.__doc__ or "", re.MULTILINE))
        for kind in (
            *(FleetSnapshot, NodeView, InstanceView, ModelView, AuditEntry, LogLine),
            *(RequestView, RequestList, DecisionView, SizeMeasurement, PinView),
        )
    }
    missing = {
        f"{kind.__name__}.{name}"
        for kind, names in told.items()
        for name in names
        if "UnixTime" not in str(get_type_hints(kind, include_extras=True)[name])
    }
    assert sum(map(len, told.values())) > 9
    assert not missing


def test_jsonl_is_one_object_a_line():
    """-o jsonl writes each item as a line of its own."""
    rows = device_rows(busy_fleet())
    lines = as_text(DEVICES, rows, Output.JSONL, paint=PLAIN).splitlines()

    assert [(json.loads(x)["node"], json.loads(x)["index"]) for x in lines] == [
        (r.node, r.device.index) for r in rows
    ]


def test_what_goes_on_is_one_object_a_line():
    """No document of JSON or YAML ends, so with --watch each object is a line."""
    assert {live(o) for o in (Output.JSON, Output.YAML, Output.JSONL)} == {Output.JSONL}
    assert live(Output.WIDE) is Output.WIDE


def test_yaml_says_the_same_as_json():
    """-o yaml holds the same document as -o json."""
    rows = instance_rows(busy_fleet())
    as_yaml = yaml.safe_load(as_text(INSTANCES, rows, Output.YAML, paint=PLAIN))

    assert as_yaml == json.loads(as_text(INSTANCES, rows, Output.JSON, paint=PLAIN))


def test_names_only():
    """-o name prints what other commands take as arguments."""
    assert as_text(NODES, busy_fleet().nodes, Output.NAME, paint=PLAIN) == "beast\nmule\nattic"


@pytest.mark.parametrize("output", [Output.TABLE, Output.WIDE, Output.NAME, Output.JSONL])
def test_an_empty_listing_writes_nothing(output: Output):
    """Without items there is no output, not even a header, so that `| wc -l` says 0."""
    assert as_text(MODELS, (), output, paint=PLAIN) == ""


def test_headers_can_be_left_out():
    """--no-headers leaves rows only."""
    text = as_text(NODES, busy_fleet().nodes, Output.TABLE, paint=PLAIN, headers=False)

    assert text.splitlines()[0].startswith("beast")


def test_colour_changes_no_character_that_is_read():
    """A coloured table without its colours is the plain table."""
    rows = instance_rows(busy_fleet())
    coloured = as_text(INSTANCES, rows, Output.WIDE, paint=Paint(on=True))

    assert "\x1b[32m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == as_text(INSTANCES, rows, Output.WIDE, paint=PLAIN)


@given(st.lists(st.tuples(st.text(), st.text(alphabet="0123456789")), max_size=8))
def test_each_row_is_one_aligned_line(rows: list[tuple[str, str]]):
    """Whatever the cells hold, a row is one line, and numbers end in the same column."""
    columns = (Column("NAME", lambda r: r[0]), Column("N", lambda r: r[1], right=True))
    lines = table(columns, rows, paint=PLAIN).split("\n")

    assert len(lines) == len(rows) + 1
    assert len({len(line) for line in lines}) == 1


@given(st.text())
def test_no_control_character_reaches_the_terminal(text: str):
    """Names from other hosts cannot move the cursor or break a line."""
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in printable(text))


@given(st.text(max_size=60), st.booleans())
def test_an_engines_line_moves_no_terminal(text: str, colour: bool):
    """Tabs stay, and colours where colour is written; nothing else of it is for the terminal."""
    shown = engine_line(text, Paint(on=colour))
    rest = re.sub(r"\x1b\[[0-9;]*m", "", shown) if colour else shown

    assert all(c in {"\t", "\n"} or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in rest)


def test_an_engines_colours_are_kept_on_a_terminal_alone():
    """A file or a pipe gets the words; a cursor that an engine moves is nobody's."""
    line = "\x1b[2K\x1b[32m INFO\x1b[0m ready"

    assert engine_line(line, Paint()) == " INFO ready"
    assert engine_line(line, Paint(on=True)) == "\x1b[32m INFO\x1b[0m ready"


def test_an_empty_cell_has_no_colour_of_trouble():
    """A column that is red where something is wrong is not red where nothing is."""
    text = as_text(MODELS, busy_fleet().models[:1], Output.TABLE, paint=Paint(on=True))

    assert "\x1b[31m" not in text


def test_in_a_table_an_error_is_its_first_line():
    """An engine's last words stand where there is room: in `models describe` and its log."""
    assert (
        brief("the engine crashed (SIGABRT):\nCUDA error: no room")
        == "the engine crashed (SIGABRT)"
    )
    assert brief("") == ""


@given(json_values)
def test_yaml_can_be_read_back(value: object):
    """Whatever is written as YAML reads as the same value."""
    assert yaml.safe_load(to_yaml(value)) == value


@given(st.sets(st.integers(0, 40), min_size=1))
def test_device_lists_can_be_read_back(indices: set[int]):
    """A device list names exactly its indices."""
    read: set[int] = set()
    for part in device_list(tuple(indices)).split(","):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))

    assert read == indices


def test_kinds_list_any_item():
    """A kind is data: a new listing needs columns and a name, no code."""
    kind = Kind("WordList", (Column("WORD", str),), str, "no words")

    assert as_text(kind, ["a", "b"], Output.TABLE, paint=PLAIN) == "WORD\na\nb"


def test_a_node_is_described_whole():
    """Facts, devices and instances of that node are told, and nothing of others."""
    fleet = busy_fleet()
    text = node_text(fleet.nodes[1], fleet, Paint())

    assert "cordoned    yes" in text
    assert "warning     the mistral.rs build wants a newer driver" in text
    assert "mule/2" in text
    assert "llama-1" in text
    assert "beast" not in text


def test_fragmentation_is_what_no_single_device_can_give():
    """A node whose room lies on several devices is fragmented by all but the largest; a full one is not."""
    rows = {r.node: r for r in room_rows(busy_fleet())}
    beast = rows["beast"]

    assert beast.available == sum(beast.devices)
    assert beast.fragmented == pytest.approx(1 - max(beast.devices) / sum(beast.devices))
    assert RoomRow("full", 0, 0, (0, 0)).fragmented == 0.0


async def test_who_follows_an_engine_sees_its_progress_bar_move(capsys: pytest.CaptureFixture[str]):
    """Bars are drawn with returns alone; a line may end between two pieces."""
    seen = []

    async def pieces() -> AsyncIterator[str]:
        for piece in ("\r10%", "\r20%\r", "\nready\r", "done\r\n"):
            yield piece
            seen.append(capsys.readouterr().out)

    await write_engine_log(pieces())
    assert seen == ["\n", "10%\n", "20%\n", "ready\ndone\n"]
