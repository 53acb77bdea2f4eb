"""No character from outside acts on a terminal."""

from __future__ import annotations

import ast
import io
import json
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from textual.color import Color

from cortex_cli.color import Colors
from cortex_cli.error_exit import describe
from cortex_cli.render.fleet import MODELS
from cortex_cli.render.formats import to_yaml, toml_value
from cortex_cli.render.log import format_engine_line
from cortex_cli.render.output_format import OutputFormat, format_items
from cortex_cli.terminal import (
    escape_unsafe,
    neutralize,
    neutralize_except_colors,
    neutralize_line,
    write_err,
    write_out,
)
from cortex_cli.tui.neutralizer import Neutralizer
from cortex_common.errors import NotFound
from cortex_common.schema.fleet import ModelState, ModelView
from cortex_common.schema.instances import ModelId

ATTACKS = {
    "clear the screen": "\x1b[2J",
    "move the cursor": "\x1b[1;1H",
    "8-bit control sequence": "\x9b2J",
    "set the clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "set the title": "\x1b]0;title\x1b\\",
    "link": "\x1b]8;;http://evil\x07",
    "report the cursor": "\x1b[6n",
    "device control string": "\x1bP+q544e\x1b\\",
    "reset": "\x1bc",
    "bell and backspace": "\x07\x08",
    "carriage return": "\r",
    "delete": "\x7f",
    "right-to-left override": "\u202e",
    "isolate": "\u2066\u2069",
    "mark": "\u200f\u061c",
    "line separator": "\u2028",
    "tags": "\U000e0041",
    "lone surrogate": "\ud800",
    "hidden text": "\x1b[8m",
}
SAFE_TEXT = "Grüße, 世界, مرحبا, 👩‍👧 – ok\tx\n"

attack = pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)


def is_harmless(text: str) -> bool:
    """Return whether a terminal shows the text as it is."""
    bad = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} - {"\n", "\t"}
    bad |= {*"\u061c\u200e\u200f\u2028\u2029", *map(chr, range(0x202A, 0x202F))}
    bad |= {*map(chr, range(0x2066, 0x206A))}
    return not bad & set(text) and not any(0xD800 <= ord(c) < 0xE000 for c in text)


@attack
def test_text_is_neutralized(text: str):
    """Whole sequences are removed, and the words around them stay."""
    assert neutralize(f"a{text}b") == "ab"
    assert neutralize_line(f"a{text}b") in {"a b", "a  b"}


@given(st.text())
def test_no_text_acts_on_a_terminal(text: str):
    """Any characters in any order."""
    for neutral in (neutralize(text), neutralize_line(text), neutralize_except_colors(text)):
        assert is_harmless(
            neutral.replace("\x1b[", "").replace("\x1b", "") if "m" in neutral else neutral
        )
    assert "\n" not in neutralize_line(text)


@pytest.mark.parametrize("text", ["", SAFE_TEXT, "a" * 100_000, "[2J", "a\tb\n"])
def test_ordinary_text_is_unchanged(text: str):
    """Other scripts, emoji and layout."""
    assert neutralize(text) == text
    assert neutralize_except_colors(text) == text


def test_only_own_colors_are_written(monkeypatch: pytest.MonkeyPatch):
    """The colors of this command are kept; those that hide text or paint the background are not."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    for write, stream in ((write_out, out), (write_err, err)):
        write(f"{Colors(enabled=True).bad('error:')} a\x1b[8mb\x1b[48;5;1mc\x1b[2Jd\n")
        assert stream.getvalue() == "\x1b[31merror:\x1b[0m abcd\n"


@attack
@pytest.mark.parametrize("output", OutputFormat)
def test_lists_are_neutral_in_every_format(text: str, output: OutputFormat):
    """Names, wide tables, JSON and YAML; the documents keep the value."""
    name = f"a{text}b"
    model = ModelView(ModelId(name), ModelState.FAILED, error=f"no{text}\nlog")
    shown = format_items(MODELS, [model], output, colors=Colors())
    assert is_harmless(shown)
    if output in {OutputFormat.JSON, OutputFormat.JSONL}:
        parsed = json.loads(shown)
        item = parsed["items"][0] if output is OutputFormat.JSON else parsed
        assert item["id"] == name


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_documents_keep_their_value(text: str):
    """JSON, YAML and TOML have escapes for all characters."""
    assert json.loads(escape_unsafe(json.dumps(text, ensure_ascii=False))) == text
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}
    assert tomllib.loads(f"a = {toml_value(text)}") == {"a": text}
    assert is_harmless(toml_value(text))
    assert is_harmless(to_yaml({"a": text}))


@attack
def test_errors_and_engine_logs_are_neutral(text: str):
    """Messages and hints of other hosts, and lines of engines with colors."""
    error = NotFound(f"no{text}thing", hints=(f"try{text}this",))
    assert is_harmless(neutralize_except_colors(describe(error, Colors())))
    assert is_harmless(format_engine_line(f"a{text}b", Colors()))
    line = format_engine_line(f"a{text}b\x1b[38;5;9mred\x1b[0m", Colors(enabled=True))
    assert line.endswith("\x1b[38;5;9mred\x1b[0m")
    assert "\x1b[2J" not in line
    assert "\x1b]" not in line


@attack
def test_everything_that_cortex_top_draws_is_neutral(text: str):
    """The filter sees every segment of every widget."""
    segments = [Segment("plain"), Segment(f"a{text}b")]
    drawn = Neutralizer().apply(segments, Color(0, 0, 0))
    assert drawn[0] is segments[0]
    assert is_harmless("".join(segment.text for segment in drawn))


def test_commands_write_through_one_module():
    """Only constants, texts that a terminal does not show, and engine logs are written past `terminal`."""
    package = Path(__file__).parents[3] / "cortex_cli"
    past = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            written = isinstance(node, ast.Call) and ast.unparse(node.func)
            if written in {"sys.stdout.write", "sys.stderr.write"}:
                (argument,) = node.args
                if not isinstance(argument, ast.Constant) and not ast.unparse(argument).isupper():
                    past.add(str(path.relative_to(package)))
    assert past == {"terminal.py", "logs.py"}
