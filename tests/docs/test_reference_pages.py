"""The generated reference pages match the code (`make reference` updates them)."""

from __future__ import annotations

import pytest

from cortex_cli.docs.reference import commands_page
from cortex_cli.root import COMMANDS
from generator.pages import PAGES, REFERENCE


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name):
    """A page equals what the generator produces (run `make reference` if it does not)."""
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_command_has_its_section():
    """The reference has a section for every command."""
    page = commands_page()

    assert [name for name in COMMANDS if f"## cortex {name}\n" not in page] == []
