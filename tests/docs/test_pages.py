"""Every page of the documentation: its links lead somewhere, its commands parse, its settings load, its names exist."""

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
from cortex_cli.config_files import SCHEMAS, kind_of
from cortex_cli.main import app
from cortex_common.config.loader import load
from cortex_common.errors import BY_CODE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
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
    """The code blocks of a page in these languages."""
    return [code for _, kind, code in _FENCE.findall(text) if kind in languages]


@cache
def prose(name: str) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", PAGES[name])


@cache
def anchors(name: str) -> frozenset[str]:
    """What the headings of a page are linked by; the same for the site and for forges."""
    titles = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)", "", title).lower() for title in titles)
    return frozenset(re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    """Each link inside the repository, and each picture, is there; so is the heading that is named."""
    broken = []
    for link in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(name))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
        known = target.exists() and (target.is_relative_to(DOCS) or name == "README.md")
        if not known or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_site() -> None:
    """The navigation of mkdocs.yml names all pages and no others."""
    told = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(_site())["nav"]))
    assert sorted(told) == sorted(n.removeprefix("docs/") for n in PAGES if n != "README.md")


def _site() -> str:
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def commands(text: str) -> set[str]:
    """Every command line of cortex that a page shows, in blocks and between backticks."""
    shown = [*blocks(text, "sh", "console"), *_SPAN.findall(_FENCE.sub("", text))]
    return {line.strip() for code in shown for line in _COMMAND.findall(code.replace("\\\n", " "))}


@pytest.mark.parametrize("name", [n for n in WRITTEN if commands(WRITTEN[n])])
def test_commands_exist_with_their_options(name: str) -> None:
    """Each command line that is shown is one that the command takes."""
    wrong = {line: why for line in commands(WRITTEN[name]) if (why := _refused(line))}
    assert wrong == {}


_ROOT_COMMAND: Any = typer.main.get_command(app)


def _refused(line: str) -> str | None:
    """Why the command would not take a line; None when it would."""
    words = shlex.split(line)
    command = _ROOT_COMMAND
    context = command.make_context("cortex", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words:
        named = command.get_command(context, words[0])
        if named is None:
            return f"there is no {words[0]}"
        context = command.make_context(words.pop(0), [], parent=context, resilient_parsing=True)
        command = named
    if hasattr(command, "get_command"):
        return None  # a group is named, not run
    try:
        command.make_context(line, words)
    except typer.BadParameter as wrong:
        # Files of the reader's are not here, and a command may be named without what it needs.
        said = wrong.format_message()
        return said if words and "does not exist" not in said else None
    except typer.Exit:
        return None
    return None


@pytest.mark.parametrize(
    ("name", "text"), [(n, t) for n, page in WRITTEN.items() for t in blocks(page, "toml")]
)
def test_settings_load(name: str, text: str, tmp_path: Path) -> None:
    """Each piece of configuration is one that the program of its file takes."""
    if isinstance(tomllib.loads(text).get("keys"), dict):
        pytest.skip("the command's own file, whose keys are names of actions")
    file = tmp_path / "some.toml"
    file.write_text(text, encoding="utf-8")
    kind = kind_of(file)
    load(SCHEMAS[kind], file, {}, siblings=tuple(SCHEMAS.values()))


def test_every_json_block_is_json() -> None:
    """Each block of JSON can be read."""
    for text in WRITTEN.values():
        for code in blocks(text, "json"):
            json.loads(code)


def test_every_variable_exists() -> None:
    """Each environment variable that is named is a setting or one of the command's."""
    for name, text in WRITTEN.items():
        for variable in set(_VARIABLE.findall(text)):
            assert variable in ENVIRONMENT or _is_setting(variable), f"{name}: {variable}"


def _is_setting(variable: str) -> bool:
    return any(
        f"`{variable}`" in PAGES[f"docs/reference/{page}-settings.md"]
        for page in ("gateway", "model", "neuron")
    )


def test_every_metric_exists() -> None:
    """Each metric that is named is one that is served."""
    known = PAGES["docs/reference/metrics.md"]
    packages = {f"cortex_{end}" for end in ("server", "cli", "common", "http", "gpu", "")}
    for name, text in WRITTEN.items():
        for metric in set(_METRIC.findall(text)) - packages:
            plain = re.sub(r"_(bucket|sum|count)$", "", metric)
            assert f"`{plain}`" in known, f"{name}: {metric}"


def test_troubleshooting_knows_every_error_that_an_operator_may_meet() -> None:
    """Each code of the tree that calls for more than a look at the request stands on the page."""
    page = PAGES["docs/troubleshooting.md"]
    for code in set(BY_CODE) - {"invalid_request", "not_found", "node_not_found", "conflict"}:
        assert f"`{code}`" in page, code


def test_troubleshooting_knows_every_warning_of_a_host() -> None:
    """Each warning that a neuron can have about its host stands on the page."""
    page = PAGES["docs/troubleshooting.md"]
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "neuron_server").rglob("*.py"))
    codes = set(re.findall(r"HostWarning\(\s*code=\"(\w+)\"", sources))
    assert codes
    assert {code for code in codes if f"`{code}`" not in page} == set()
