"""The guides for clients work as pasted: their Python runs, their commands exist, their settings load."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from clients_kit import SAY, answer, asked, completion, say
from rigs.engine import Call, scripted_engine
from rigs.plane import running_plane

from cortex_cli.main import app
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = ("openai-sdk.md", "claude-code.md", "codex.md", "upstreams.md")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"\bcortex( [a-z-]+[^\n\"`|>)]*)")


def blocks(language: str) -> list[tuple[str, str]]:
    """All code blocks of a language, with their page."""
    return [
        (page, text)
        for page in PAGES
        for kind, text in _FENCE.findall((GUIDES / page).read_text(encoding="utf-8"))
        if kind == language
    ]


@pytest.mark.parametrize(("page", "code"), blocks("python"))
async def test_python_runs_as_pasted(page: str, code: str) -> None:
    """Each program runs to its end against a gateway, and prints what the model says."""

    async def model(call: Call) -> None:
        script = say(SAY) if asked(call).get("stream") else answer(completion("hello"))
        await script(call)

    async with scripted_engine(model) as engine, running_plane({"qwen3": engine.url}) as rig:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c"),
            code.replace("http://127.0.0.1:8000", rig.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "hello" in out.decode()


def commands() -> list[str]:
    """Every `cortex ...` in the shell blocks."""
    return [
        found.strip()
        for _, text in blocks("sh")
        for found in _COMMAND.findall(text)
        if not found.strip().endswith("=")
    ]


@pytest.mark.parametrize("line", commands())
def test_commands_exist_with_their_options(line: str) -> None:
    """Each command line of the guides is parsed by the command that it names."""
    words = shlex.split(line)
    command: Any = typer.main.get_command(app)
    context = command.make_context("cortex", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words:
        name = words.pop(0)
        command = command.get_command(context, name)
        assert command is not None, line
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    command.make_context(line, words)  # raises a usage error for an option that does not exist


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_settings_load(page: str, text: str) -> None:
    """Each piece of configuration is valid where its page says that it stands."""
    read = tomllib.loads(text)
    (Catalogue if "models" in read else GatewayConfig).model_validate(read)


def test_there_is_something_to_check() -> None:
    """The patterns find what the pages have."""
    assert len(blocks("python")) == 2
    assert len(commands()) >= 7
    assert len(blocks("toml")) == 2
