"""The Python programs in the client guides run as printed."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from clients_kit import HELLO_STREAM, completion, json_response, request_body, stream_response
from rigs.engine import Call, scripted_engine
from rigs.proxy import running_proxy

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = ("openai-sdk.md", "claude-code.md", "codex.md")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """Return all code blocks in a language, with their page."""
    return [
        (page, text)
        for page in PAGES
        for kind, text in _FENCE.findall((GUIDES / page).read_text(encoding="utf-8"))
        if kind == language
    ]


@pytest.mark.parametrize(("page", "code"), blocks("python"))
async def test_python_runs_as_printed(page: str, code: str) -> None:
    """Every program runs against a gateway and prints the answer of the model."""

    async def model(call: Call) -> None:
        script = (
            stream_response(HELLO_STREAM)
            if request_body(call).get("stream")
            else json_response(completion("hello"))
        )
        await script(call)

    async with scripted_engine(model) as engine, running_proxy({"qwen3": engine.url}) as rig:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c"),
            code.replace("http://127.0.0.1:8000", rig.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "hello" in out.decode()


def test_all_programs_are_found() -> None:
    """The pattern finds every Python block of the guides."""
    assert len(blocks("python")) == 2
