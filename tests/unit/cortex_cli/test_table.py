"""Tables that are cut to the width of the terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.color import Colors
from cortex_cli.render.table import MIN_WIDTH, Column, table

COLUMNS: list[Column[tuple[str, str, int]]] = [
    Column("NAME", lambda row: row[0]),
    Column("SIZE", lambda row: str(row[2]), right=True),
    Column("STATUS", lambda row: row[1]),
]


def test_a_pipe_gets_every_character():
    """Without a width, nothing is cut."""
    text = table(COLUMNS, [("n" * 90, "s" * 90, 7)], colors=Colors())
    assert ("n" * 90 in text, "s" * 90 in text) == (True, True)


def test_the_widest_text_is_cut_first():
    """At 40 columns the long status is cut, the name and the number are not."""
    text = table(COLUMNS, [("qwen3-32b", "s" * 90, 7)], colors=Colors(), max_width=40)
    assert text.splitlines()[1] == f"qwen3-32b     7  {'s' * 22}…"


@given(
    st.lists(
        st.tuples(st.text("ab", max_size=50), st.text("ab", max_size=50), st.integers(0, 10**9)),
        max_size=4,
    ),
    st.integers(MIN_WIDTH + 14, 130),
)
def test_no_line_wraps_and_no_number_is_cut(rows: list[tuple[str, str, int]], width: int):
    """No line is wider than the terminal, and numbers are complete."""
    lines = table(COLUMNS, rows, colors=Colors(), max_width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert all(str(row[2]) in line for row, line in zip(rows, lines[1:], strict=True))
