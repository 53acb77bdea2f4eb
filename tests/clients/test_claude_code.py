"""The real Claude Code through the gateway."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from clients.fetch_npm import CLAUDE_CODE, find_or_fetch
from clients.programs import CompletedProgram, run
from clients_kit import HELLO_STREAM, in_sequence, json_response, request_body, stream_response
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs.engine import ScriptedEngine, scripted_engine
from rigs.proxy import ProxyRig, running_proxy

from cortex_cli.client import GatewayTarget
from cortex_cli.client_settings import claude_code
from cortex_common.config.catalogue import ModelConfig

BINARY = find_or_fetch(CLAUDE_CODE)
pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(isinstance(BINARY, str), reason=str(BINARY)),
    pytest.mark.timeout(180),
]
MODEL_CONFIG = ModelConfig(id="org/local", harness="scripted", aliases=("claude-*",))


async def run_claude(
    rig: ProxyRig, home: Path, prompt: str, model: str = "org/local"
) -> CompletedProgram:
    """Run `claude -p`, configured by `cortex env claude-code`."""
    assert isinstance(BINARY, Path)
    lines = claude_code(GatewayTarget(rig.url, "k"), model, 65536).splitlines()
    environ = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    return await run(BINARY, "-p", prompt, "--output-format", "json", home=home, environ=environ)


async def wait_until_idle(rig: ProxyRig) -> None:
    """Wait until no request is in flight or counted."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


def tool_results(engine: ScriptedEngine) -> list[dict[str, Any]]:
    """Return the tool results that reached the engine."""
    return [m for c in engine.calls for m in request_body(c)["messages"] if m["role"] == "tool"]


@pytest.mark.compatibility("Claude Code", "messages")
async def test_text_turn(tmp_path: Path) -> None:
    """A local model under a claude- name answers, and the engine's token counts are reported."""
    async with (
        scripted_engine(stream_response(HELLO_STREAM)) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[MODEL_CONFIG]) as rig,
    ):
        completed = await run_claude(rig, tmp_path, "say hello", "claude-local")
        await wait_until_idle(rig)
        sent = request_body(engine.calls[0])
    assert completed.code == 0, completed.err
    output = json.loads(completed.out)
    assert (output["result"], output["is_error"]) == ("hello", False)
    assert (output["usage"]["input_tokens"], output["usage"]["output_tokens"]) == (11, 5)
    assert sent["model"] == "org/local"
    assert "x-anthropic-billing-header" not in sent["messages"][0]["content"]
    assert [m["role"] for m in sent["messages"]].count("system") == 1


@pytest.mark.compatibility("Claude Code", "tools")
async def test_tool_turn(tmp_path: Path) -> None:
    """Two parallel calls are made, and both results reach the model before it answers."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"the content of {name}\n")
    arguments = [json.dumps({"file_path": str(tmp_path / f"{n}.txt")}) for n in ("one", "two")]
    calls = sse_stream(
        *(chunk(call_delta(i, a, call_id=f"c{i}", name="Read")) for i, a in enumerate(arguments)),
        chunk(finish="tool_calls"),
        usage_chunk(),
    )
    async with (
        scripted_engine(
            in_sequence(stream_response(calls), stream_response(HELLO_STREAM))
        ) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[MODEL_CONFIG]) as rig,
    ):
        completed = await run_claude(rig, tmp_path, "read both")
        await wait_until_idle(rig)
        outputs = {m["tool_call_id"]: m["content"] for m in tool_results(engine)}
    assert completed.code == 0, completed.err
    assert json.loads(completed.out)["result"] == "hello"
    assert {i: f"the content of {n}" in outputs[i] for i, n in (("c0", "one"), ("c1", "two"))} == {
        "c0": True,
        "c1": True,
    }


@pytest.mark.compatibility("Claude Code", "failures")
async def test_context_overflow(tmp_path: Path) -> None:
    """A prompt that is too long is sent once, and reported with both numbers."""
    overflow = {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}
    async with (
        scripted_engine(json_response({"error": overflow}, b"400 Bad Request")) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[MODEL_CONFIG]) as rig,
    ):
        completed = await run_claude(rig, tmp_path, "say hello")
        await wait_until_idle(rig)
        assert len(engine.calls) == 1
    assert completed.code == 1
    output = json.loads(completed.out)
    assert output["is_error"]
    assert "9000" in output["result"]
    assert "8192" in output["result"]
