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

from cortex_cli.color import Colors
from cortex_cli.logs import write_engine_log
from cortex_cli.render.details import node_text
from cortex_cli.render.fleet import (
    DEVICES,
    INSTANCES,
    MODELS,
    NODES,
    FragmentationRow,
    device_list,
    device_rows,
    fragmentation_rows,
    instance_rows,
    problems,
)
from cortex_cli.render.formats import to_yaml
from cortex_cli.render.json_values import rfc3339, to_plain
from cortex_cli.render.log import format_engine_line
from cortex_cli.render.output_format import ListKind, OutputFormat, format_items
from cortex_cli.render.status import status_text
from cortex_cli.render.table import Column, brief, table
from cortex_cli.terminal import neutralize_line
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

PLAIN = Colors()


def test_an_instance_on_a_lost_node_is_not_shown_as_in_use():
    """The status of an instance whose node is unreachable is the state of the node."""
    fleet = busy_fleet()
    lost = replace(fleet.nodes[0], state=NodeState.UNREACHABLE)
    shown = format_items(
        INSTANCES, instance_rows(replace(fleet, nodes=(lost,))), OutputFormat.TABLE, colors=PLAIN
    )
    assert shown.count("node unreachable") == len(lost.instances)


def test_the_status_of_an_isolated_instance():
    """A ready instance that is isolated shows the error code that isolated it."""
    (node, *_) = busy_fleet().nodes
    failing = replace(
        node, instances=tuple(replace(i, failing="engine_500") for i in node.instances)
    )
    fleet = replace(busy_fleet(), nodes=(failing,))
    shown = format_items(INSTANCES, instance_rows(fleet), OutputFormat.TABLE, colors=PLAIN)
    ready = [i for i in node.instances if i.state is InstanceState.READY]
    assert shown.count("isolated: engine_500") == len(ready) > 0


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
        (
            "ps",
            format_items(INSTANCES, instance_rows(busy_fleet()), OutputFormat.TABLE, colors=PLAIN),
        ),
        (
            "ps-wide",
            format_items(INSTANCES, instance_rows(busy_fleet()), OutputFormat.WIDE, colors=PLAIN),
        ),
        ("models", format_items(MODELS, busy_fleet().models, OutputFormat.TABLE, colors=PLAIN)),
        ("nodes", format_items(NODES, busy_fleet().nodes, OutputFormat.TABLE, colors=PLAIN)),
        (
            "gpus",
            format_items(DEVICES, device_rows(busy_fleet()), OutputFormat.TABLE, colors=PLAIN),
        ),
        ("status", status_text(busy_fleet(), "http://gw:8000", PLAIN)),
    ],
)
def test_tables_match_the_golden_files(name: str, text: str):
    """Each table of the sample fleet equals its golden file."""
    assert f"{text}\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_a_fleet_without_nodes_is_a_problem():
    """A gateway without nodes is reported."""
    assert problems(empty_fleet()) == ["the gateway has no nodes"]


def test_an_engine_that_keeps_crashing_is_a_problem():
    """An engine that is being restarted is reported, although its model has not failed and its node is up."""
    fleet = busy_fleet()
    beast = fleet.nodes[0]
    crashed = replace(beast.instances[1], state=InstanceState.LOADING, error="it crashed:\nboom")
    again = replace(fleet, nodes=(replace(beast, instances=(crashed,)),), models=())
    assert problems(again) == [f"model {crashed.model} is being restarted on beast: it crashed"]


def test_rejected_settings_and_expired_certificates_are_problems():
    """Settings that the gateway rejected, and expired certificates of it and of nodes, are reported."""
    fleet = empty_fleet()
    ends = Certificate("cert.pem", fleet.at)
    node = NodeView(name="n", endpoint="https://n:9090", state=NodeState.UP, certificates=(ends,))
    refused = SettingsView(fleet.at, "cortex.toml:3: unknown key")
    found = problems(replace(fleet, nodes=(node,), certificates=(ends,), settings=refused))

    assert found[0] == "the gateway uses older settings: cortex.toml:3: unknown key"
    assert [t.partition(" expired on ")[0] for t in found[1:]] == [
        "the certificate in cert.pem",
        "node n: the certificate in cert.pem",
    ]


def test_a_json_document_has_version_kind_and_items():
    """-o json is one document whose items have every field of the snapshot, with sizes in MiB."""
    fleet = busy_fleet()
    document = json.loads(format_items(MODELS, fleet.models, OutputFormat.JSON, colors=PLAIN))

    assert (document["apiVersion"], document["kind"]) == ("cortex/v1", "ModelList")
    assert [m["id"] for m in document["items"]] == [m.id for m in fleet.models]
    assert document["items"][0]["vram_mb"] == 69_800


def test_documents_differ_from_the_api_in_times_only():
    """Every field of a snapshot equals the API's, except for times, which are in RFC 3339."""
    fleet = busy_fleet()
    document = to_plain(fleet)
    node, instance = document["nodes"][0], document["nodes"][0]["instances"][0]
    assert (document["at"], instance["last_used"]) == (
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:19Z",
    )
    assert to_plain(empty_fleet())["started_at"] is None

    def without_times(value: object) -> object:
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
            return {k: without_times(v) for k, v in value.items() if k not in times}
        return [without_times(v) for v in value] if isinstance(value, list) else value

    assert without_times(document) == without_times(SNAPSHOT.dump_python(fleet, mode="json"))
    assert node["seen_at"].endswith("Z")


@given(st.floats(1, 253402300799), st.booleans())
def test_times_are_formatted_exactly(seconds: float, exact: bool):
    """RFC 3339 has the same time, to the second or to the millisecond."""
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
def test_milliseconds_are_included_where_they_matter(
    value: WireModel, field: str, text: str | None
):
    """A log line has milliseconds, the expiry of a pin has none, and no expiry is null."""
    assert to_plain(value)[field] == text


def test_fields_in_unix_seconds_are_marked():
    """Fields documented as Unix seconds are marked as such; otherwise they would be written as numbers."""
    documented = {
        kind: set(re.findall(r"^ +(\w+): Unix seconds", kind.__doc__ or "", re.MULTILINE))
        for kind in (
            *(FleetSnapshot, NodeView, InstanceView, ModelView, AuditEntry, LogLine),
            *(RequestView, RequestList, DecisionView, SizeMeasurement, PinView),
        )
    }
    missing = {
        f"{kind.__name__}.{name}"
        for kind, names in documented.items()
        for name in names
        if "UnixTime" not in str(get_type_hints(kind, include_extras=True)[name])
    }
    assert sum(map(len, documented.values())) > 9
    assert not missing


def test_jsonl_is_one_object_per_line():
    """-o jsonl writes each item on its own line."""
    rows = device_rows(busy_fleet())
    lines = format_items(DEVICES, rows, OutputFormat.JSONL, colors=PLAIN).splitlines()

    assert [(json.loads(x)["node"], json.loads(x)["index"]) for x in lines] == [
        (r.node, r.device.index) for r in rows
    ]


def test_the_streaming_format_is_one_object_per_line():
    """With --watch, JSON and YAML become JSON lines, because a stream has no end."""
    formats = (OutputFormat.JSON, OutputFormat.YAML, OutputFormat.JSONL)
    assert {f.streaming for f in formats} == {OutputFormat.JSONL}
    assert OutputFormat.WIDE.streaming is OutputFormat.WIDE


def test_yaml_equals_json():
    """-o yaml contains the same document as -o json."""
    rows = instance_rows(busy_fleet())
    as_yaml = yaml.safe_load(format_items(INSTANCES, rows, OutputFormat.YAML, colors=PLAIN))

    assert as_yaml == json.loads(format_items(INSTANCES, rows, OutputFormat.JSON, colors=PLAIN))


def test_names_only():
    """-o name prints names that other commands accept as arguments."""
    assert (
        format_items(NODES, busy_fleet().nodes, OutputFormat.NAME, colors=PLAIN)
        == "beast\nmule\nattic"
    )


@pytest.mark.parametrize(
    "output", [OutputFormat.TABLE, OutputFormat.WIDE, OutputFormat.NAME, OutputFormat.JSONL]
)
def test_an_empty_list_writes_nothing(output: OutputFormat):
    """Without items there is no output, not even a header, so that `| wc -l` prints 0."""
    assert format_items(MODELS, (), output, colors=PLAIN) == ""


def test_headers_can_be_omitted():
    """--no-headers prints only rows."""
    text = format_items(NODES, busy_fleet().nodes, OutputFormat.TABLE, colors=PLAIN, headers=False)

    assert text.splitlines()[0].startswith("beast")


def test_color_changes_no_visible_character():
    """A colored table without its colors equals the plain table."""
    rows = instance_rows(busy_fleet())
    colored = format_items(INSTANCES, rows, OutputFormat.WIDE, colors=Colors(enabled=True))

    assert "\x1b[32m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == format_items(
        INSTANCES, rows, OutputFormat.WIDE, colors=PLAIN
    )


@given(st.lists(st.tuples(st.text(), st.text(alphabet="0123456789")), max_size=8))
def test_each_row_is_one_aligned_line(rows: list[tuple[str, str]]):
    """A row is always one line, and right-aligned cells end in the same column."""
    columns = (Column("NAME", lambda r: r[0]), Column("N", lambda r: r[1], right=True))
    lines = table(columns, rows, colors=PLAIN).split("\n")

    assert len(lines) == len(rows) + 1
    assert len({len(line) for line in lines}) == 1


@given(st.text())
def test_control_characters_are_removed(text: str):
    """Names from other hosts can't move the cursor or break a line."""
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in neutralize_line(text))


@given(st.text(max_size=60), st.booleans())
def test_control_characters_of_engines_are_removed(text: str, color: bool):
    """Tabs are kept, and colors if colors are enabled; other control characters are removed."""
    shown = format_engine_line(text, Colors(enabled=color))
    rest = re.sub(r"\x1b\[[0-9;]*m", "", shown) if color else shown

    assert all(c in {"\t", "\n"} or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in rest)


def test_engine_colors_are_written_to_terminals_only():
    """Colors are removed for a file or a pipe; cursor movements always."""
    line = "\x1b[2K\x1b[32m INFO\x1b[0m ready"

    assert format_engine_line(line, Colors()) == " INFO ready"
    assert format_engine_line(line, Colors(enabled=True)) == "\x1b[32m INFO\x1b[0m ready"


def test_an_empty_cell_is_not_red():
    """The placeholder of an empty cell does not have the color of errors."""
    text = format_items(
        MODELS, busy_fleet().models[:1], OutputFormat.TABLE, colors=Colors(enabled=True)
    )

    assert "\x1b[31m" not in text


def test_tables_show_the_first_line_of_an_error():
    """The engine output in an error is shown by `models describe` and the log only."""
    assert (
        brief("the engine crashed (SIGABRT):\nCUDA error: out of memory")
        == "the engine crashed (SIGABRT)"
    )
    assert brief("") == ""


@given(json_values)
def test_yaml_can_be_parsed(value: object):
    """Any value is written as YAML that parses to the same value."""
    assert yaml.safe_load(to_yaml(value)) == value


@given(st.sets(st.integers(0, 40), min_size=1))
def test_device_lists_can_be_parsed(indices: set[int]):
    """A device list contains exactly its indices."""
    read: set[int] = set()
    for part in device_list(tuple(indices)).split(","):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))

    assert read == indices


def test_a_list_kind_is_data():
    """A new list needs only columns and a name."""
    kind = ListKind("WordList", (Column("WORD", str),), str, "no words")

    assert format_items(kind, ["a", "b"], OutputFormat.TABLE, colors=PLAIN) == "WORD\na\nb"


def test_the_details_of_a_node():
    """The details contain facts, devices and instances of the node, and nothing of other nodes."""
    fleet = busy_fleet()
    text = node_text(fleet.nodes[1], fleet, Colors())

    assert "cordoned    yes" in text
    assert "warning     the mistral.rs build wants a newer driver" in text
    assert "mule/2" in text
    assert "llama-1" in text
    assert "beast" not in text


def test_fragmentation():
    """Fragmentation is the fraction of free memory that is not on the device with the most; 0 for a full node."""
    rows = {r.node: r for r in fragmentation_rows(busy_fleet())}
    beast = rows["beast"]

    assert beast.available == sum(beast.devices)
    assert beast.fragmented == pytest.approx(1 - max(beast.devices) / sum(beast.devices))
    assert FragmentationRow("full", 0, 0, (0, 0)).fragmented == 0.0


async def test_updates_of_progress_bars_are_lines(capsys: pytest.CaptureFixture[str]):
    """Each update of a progress bar, which ends with a carriage return, is a line, also across chunks."""
    output = []

    async def chunks() -> AsyncIterator[str]:
        for chunk in ("\r10%", "\r20%\r", "\nready\r", "done\r\n"):
            yield chunk
            output.append(capsys.readouterr().out)

    await write_engine_log(chunks())
    assert output == ["\n", "10%\n", "20%\n", "ready\ndone\n"]
