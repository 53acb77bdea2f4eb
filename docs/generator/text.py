"""Markdown helpers for all generated pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

NOTE = "<!-- Written by `make reference`; a test checks that it is up to date. -->"

_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.MULTILINE)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(title: str, *parts: str) -> str:
    """Return a page with a title, a note about its origin, and its parts."""
    return "\n\n".join([f"# {title}", NOTE, *parts]) + "\n"


def sentence(text: str) -> str:
    """Return a text on one line, with its first letter capitalized."""
    joined = " ".join(text.split())
    return joined[:1].upper() + joined[1:]


def described(doc: str) -> tuple[str, Mapping[str, str]]:
    """Split a docstring into its prose and its `Attributes:`, by name."""
    prose, _, listed = inspect.cleandoc(doc).partition("Attributes:\n")
    parts = _ATTRIBUTE.split(listed)
    attributes = {
        name: " ".join(text.split())
        for names, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in names.split(", ")
    }
    return prose.strip(), attributes
