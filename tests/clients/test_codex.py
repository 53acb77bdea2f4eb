"""The real Codex through the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clients.fetch_npm import CODEX, acquire
from clients.programs import Ended, run
from clients_kit import SAY, answer, asked, in_turn, say
from dialects_kit import call, chunk, usage_chunk, wire
from rigs.engine import scripted_engine
from rigs.proxy import ProxyRig, running_proxy

from cortex_cli.client import Target
from cortex_cli.client_settings import codex

BINARY = acquire(CODEX)
pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(isinstance(BINARY, str), reason=str(BINARY)),
    pytest.mark.timeout(180),
]


async def turn(rig: ProxyRig, home: Path, prompt: str) -> Ended:
    """One `codex exec`, as `cortex env codex` sets it up."""
    assert isinstance(BINARY, Path)
    folder = home / ".codex"
    folder.mkdir()
    settings = codex(Target(rig.url, "k"), "org/local", 8192, "cortex")
    (folder / "config.toml").write_text(settings)
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    environ = {"CODEX_HOME": str(folder), "CORTEX_API_KEY": "k"}
    return await run(BINARY, "exec", *flags, prompt, home=home, environ=environ)


async def nothing_left(rig: ProxyRig) -> None:
    """No request is under way, nor counted as such."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


async def test_a_text_turn(tmp_path: Path) -> None:
    """A question is answered on stdout."""
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        ended = await turn(rig, tmp_path, "say hello")
        await nothing_left(rig)
        sent = asked(engine.calls[0])
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "hello"
    assert sent["messages"][0]["role"] == "system"
    assert {tool["type"] for tool in sent["tools"]} == {"function"}


async def test_a_tool_turn(tmp_path: Path) -> None:
    """A command is run, and what it printed comes back to the model before it answers."""
    command = json.dumps({"cmd": "echo $((40 + 2))-marks"})
    calls = wire(
        chunk({"reasoning_content": "I must count."}),
        chunk(call(0, command, ident="c0", name="exec_command")),
        chunk(finish="tool_calls"),
        usage_chunk(),
    )
    async with (
        scripted_engine(in_turn(say(calls), say(SAY))) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        ended = await turn(rig, tmp_path, "count")
        await nothing_left(rig)
        messages = asked(engine.calls[1])["messages"]
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "hello"
    (result,) = [m for m in messages if m["role"] == "tool"]
    assert (result["tool_call_id"], "42-marks" in result["content"]) == ("c0", True)


async def test_an_error_turn(tmp_path: Path) -> None:
    """What the engine refuses is told with its words, once, and the program fails."""
    refused = answer({"error": {"message": "this model is for poems"}}, b"400 Bad Request")
    async with (
        scripted_engine(refused) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        ended = await turn(rig, tmp_path, "say hello")
        await nothing_left(rig)
        assert len(engine.calls) == 1
    assert ended.code == 1
    assert "this model is for poems" in ended.err
