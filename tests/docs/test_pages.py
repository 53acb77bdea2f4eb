"""Every page of the documentation: links resolve, commands parse, settings load, and names exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cortex_cli.commands.help import ENVIRONMENT
from cortex_cli.config_files import SCHEMAS, detect_kind
from cortex_cli.root import app
from cortex_common.config.loader import load
from cortex_common.errors import ERRORS_BY_CODE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUTSIDE = ("README.md", "CONTRIBUTING.md")
"""Pages outside docs, which are not part of the site."""
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (*(ROOT / name for name in OUTSIDE), *sorted(DOCS.rglob("*.md")))
}
WRITTEN = {
    name: text for name, text in PAGES.items() if "Written by `make reference`" not in text[:200]
}

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:^|^\$ |sudo |[(;&] ?|/)cortex( [a-z][^\n#|>&;)]*)", re.MULTILINE)
_VARIABLE = re.compile(r"\bCORTEX_[A-Z0-9_]+\b")
_METRIC = re.compile(r"\bcortex_[a-z_]+\b")


def blocks(text: str, *languages: str) -> list[str]:
    """Return the code blocks of a page in the given languages."""
    return [code for _, kind, code in _FENCE.findall(text) if kind in languages]


@cache
def prose(name: str) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", PAGES[name])


@cache
def anchors(name: str) -> frozenset[str]:
    """Return the anchors of a page's headings, which are the same on the site and on forges."""
    titles = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)", "", title).lower() for title in titles)
    return frozenset(re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain)


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name: str) -> None:
    """Every link within the repository leads to an existing file and heading."""
    broken = []
    for link in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(name))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
        exists = target.exists() and (target.is_relative_to(DOCS) or name in OUTSIDE)
        if not exists or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_site() -> None:
    """The navigation of mkdocs.yml lists exactly the existing pages."""
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(_site())["nav"]))
    assert sorted(listed) == sorted(n.removeprefix("docs/") for n in PAGES if n not in OUTSIDE)


def _site() -> str:
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def commands(text: str) -> set[str]:
    """Return every cortex command line of a page, in code blocks and code spans."""
    shown = [*blocks(text, "sh", "console"), *_SPAN.findall(_FENCE.sub("", text))]
    return {line.strip() for code in shown for line in _COMMAND.findall(code.replace("\\\n", " "))}


@pytest.mark.parametrize("name", [n for n in WRITTEN if commands(WRITTEN[n])])
def test_commands_are_valid(name: str) -> None:
    """Every command line parses: the commands and options exist."""
    errors = {line: error for line in commands(WRITTEN[name]) if (error := _parse_error(line))}
    assert errors == {}


_ROOT_COMMAND: Any = typer.main.get_command(app)


def _parse_error(line: str) -> str | None:
    """Return why the command rejects a line, or None if it accepts it."""
    words = shlex.split(line)
    command = _ROOT_COMMAND
    context = command.make_context("cortex", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words:
        subcommand = command.get_command(context, words[0])
        if subcommand is None:
            return f"no such command: {words[0]}"
        context = command.make_context(words.pop(0), [], parent=context, resilient_parsing=True)
        command = subcommand
    if hasattr(command, "get_command"):
        return None  # the line mentions a group and does not run it
    try:
        command.make_context(line, words)
    except typer.BadParameter as error:
        # The reader's files do not exist here, and a mentioned command can lack its arguments.
        message = error.format_message()
        return message if words and "does not exist" not in message else None
    except typer.Exit:
        return None
    return None


@pytest.mark.parametrize(
    ("name", "text"), [(n, t) for n, page in WRITTEN.items() for t in blocks(page, "toml")]
)
def test_settings_load(name: str, text: str, tmp_path: Path) -> None:
    """Every TOML block is a valid configuration file."""
    if isinstance(tomllib.loads(text).get("keys"), dict):
        pytest.skip("configuration of the command, where [keys] maps actions to keys")
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    kind = detect_kind(file)
    load(SCHEMAS[kind], file, {}, siblings=tuple(SCHEMAS.values()))


def test_json_blocks_are_valid() -> None:
    """Every JSON block parses."""
    for text in WRITTEN.values():
        for code in blocks(text, "json"):
            json.loads(code)


def test_every_variable_exists() -> None:
    """Every environment variable is a setting or is documented by the command."""
    for name, text in WRITTEN.items():
        for variable in set(_VARIABLE.findall(text)):
            assert variable in ENVIRONMENT or _is_setting(variable), f"{name}: {variable}"


def _is_setting(variable: str) -> bool:
    return any(
        f"`{variable}`" in PAGES[f"docs/reference/{page}-settings.md"]
        for page in ("gateway", "model", "neuron")
    )


def test_every_metric_exists() -> None:
    """Every metric is exported by a daemon."""
    exported = PAGES["docs/reference/metrics.md"]
    packages = {f"cortex_{end}" for end in ("server", "cli", "common", "http", "gpu", "")}
    for name, text in WRITTEN.items():
        for metric in set(_METRIC.findall(text)) - packages:
            plain = re.sub(r"_(bucket|sum|count)$", "", metric)
            assert f"`{plain}`" in exported, f"{name}: {metric}"


def test_troubleshooting_covers_every_error() -> None:
    """The page has every error code, except those that the request itself explains."""
    page = PAGES["docs/troubleshooting.md"]
    for code in set(ERRORS_BY_CODE) - {
        "invalid_request",
        "not_found",
        "node_not_found",
        "conflict",
    }:
        assert f"`{code}`" in page, code


def test_troubleshooting_covers_every_host_warning() -> None:
    """The page has every warning that a neuron reports about its host."""
    page = PAGES["docs/troubleshooting.md"]
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "neuron_server").rglob("*.py"))
    codes = set(re.findall(r"HostWarning\(\s*code=\"(\w+)\"", sources))
    assert codes
    assert {code for code in codes if f"`{code}`" not in page} == set()
