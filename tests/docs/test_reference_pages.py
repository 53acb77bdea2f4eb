from __future__ import annotations

from pathlib import Path

import pytest

from cortex_cli.main import COMMANDS
from cortex_cli.reference import commands_page, keys_page

PAGES = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize(("name", "page"), [("cli.md", commands_page), ("keys.md", keys_page)])
def test_the_pages_are_up_to_date(name: str, page):
    """The reference says what the code does; `python -m cortex_cli.reference` writes it anew."""
    assert (PAGES / name).read_text(encoding="utf-8") == page()


def test_every_command_has_its_section():
    """No command is missing from the reference."""
    page = commands_page()

    assert [name for name in COMMANDS if f"## cortex {name}\n" not in page] == []
