"""Markdown that all generated pages share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

NOTE = "<!-- Written by `make reference`; a test holds it to the code. -->"

_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.MULTILINE)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(title: str, *parts: str) -> str:
    """A whole page: its title, where it comes from, its parts."""
    return "\n\n".join([f"# {title}", NOTE, *parts]) + "\n"


def sentence(text: str) -> str:
    """The text on one line, with a capital at its start."""
    joined = " ".join(text.split())
    return joined[:1].upper() + joined[1:]


def described(doc: str) -> tuple[str, Mapping[str, str]]:
    """The prose of a docstring, and what its `Attributes:` say of each."""
    prose, _, listed = inspect.cleandoc(doc).partition("Attributes:\n")
    parts = _ATTRIBUTE.split(listed)
    attributes = {
        name: " ".join(text.split())
        for names, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in names.split(", ")
    }
    return prose.strip(), attributes
