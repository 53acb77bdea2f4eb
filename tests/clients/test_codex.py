"""The real Codex through the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clients.fetch_npm import CODEX, find_or_fetch
from clients.programs import CompletedProgram, run
from clients_kit import HELLO_STREAM, in_sequence, json_response, request_body, stream_response
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs.engine import scripted_engine
from rigs.proxy import ProxyRig, running_proxy

from cortex_cli.client import GatewayTarget
from cortex_cli.client_settings import codex

BINARY = find_or_fetch(CODEX)
pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(isinstance(BINARY, str), reason=str(BINARY)),
    pytest.mark.timeout(180),
]


async def run_codex(rig: ProxyRig, home: Path, prompt: str) -> CompletedProgram:
    """Run `codex exec`, configured by `cortex env codex`."""
    assert isinstance(BINARY, Path)
    folder = home / ".codex"
    folder.mkdir()
    settings = codex(GatewayTarget(rig.url, "k"), "org/local", 8192, "cortex")
    (folder / "config.toml").write_text(settings)
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    environ = {"CODEX_HOME": str(folder), "CORTEX_API_KEY": "k"}
    return await run(BINARY, "exec", *flags, prompt, home=home, environ=environ)


async def wait_until_idle(rig: ProxyRig) -> None:
    """Wait until no request is in flight or counted."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


@pytest.mark.compatibility("Codex", "responses")
async def test_text_turn(tmp_path: Path) -> None:
    """The answer is printed on stdout."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        completed = await run_codex(rig, tmp_path, "say hello")
        await wait_until_idle(rig)
        sent = request_body(engine.calls[0])
    assert completed.code == 0, completed.err
    assert completed.out.strip() == "hello"
    assert sent["messages"][0]["role"] == "system"
    assert {tool["type"] for tool in sent["tools"]} == {"function"}


@pytest.mark.compatibility("Codex", "tools")
async def test_tool_turn(tmp_path: Path) -> None:
    """A command is run, and its output reaches the model before it answers."""
    command = json.dumps({"cmd": "echo $((40 + 2))-marks"})
    calls = sse_stream(
        chunk({"reasoning_content": "I must count."}),
        chunk(call_delta(0, command, call_id="c0", name="exec_command")),
        chunk(finish="tool_calls"),
        usage_chunk(),
    )
    async with (
        scripted_engine(
            in_sequence(stream_response(calls), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        completed = await run_codex(rig, tmp_path, "count")
        await wait_until_idle(rig)
        messages = request_body(engine.calls[1])["messages"]
    assert completed.code == 0, completed.err
    assert completed.out.strip() == "hello"
    (result,) = [m for m in messages if m["role"] == "tool"]
    assert (result["tool_call_id"], "42-marks" in result["content"]) == ("c0", True)


@pytest.mark.compatibility("Codex", "failures")
async def test_engine_error(tmp_path: Path) -> None:
    """The engine's error is reported once, with its message, and the program fails."""
    error_response = json_response(
        {"error": {"message": "this model is for poems"}}, b"400 Bad Request"
    )
    async with (
        scripted_engine(error_response) as engine,
        running_proxy({"org/local": engine.url}) as rig,
    ):
        completed = await run_codex(rig, tmp_path, "say hello")
        await wait_until_idle(rig)
        assert len(engine.calls) == 1
    assert completed.code == 1
    assert "this model is for poems" in completed.err
