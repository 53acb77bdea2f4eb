"""The generated reference says what the code does; `make reference` writes it anew."""

from __future__ import annotations

import pytest

from cortex_cli.docs.reference import commands_page
from cortex_cli.main import COMMANDS
from generator.pages import PAGES, REFERENCE


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name):
    """A change of the code that a page describes is written into the page, too (`make reference`)."""
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_command_has_its_section():
    """No command is missing from the reference."""
    page = commands_page()

    assert [name for name in COMMANDS if f"## cortex {name}\n" not in page] == []
