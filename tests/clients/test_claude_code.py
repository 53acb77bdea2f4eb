"""The real Claude Code through the gateway."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from clients.fetch_npm import CLAUDE_CODE, acquire
from clients.programs import Ended, run
from clients_kit import SAY, answer, asked, in_turn, say
from dialects_kit import call, chunk, usage_chunk, wire
from rigs.engine import ScriptedEngine, scripted_engine
from rigs.proxy import ProxyRig, running_proxy

from cortex_cli.client import Target
from cortex_cli.client_settings import claude_code
from cortex_common.config.catalogue import ModelConfig

BINARY = acquire(CLAUDE_CODE)
pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(isinstance(BINARY, str), reason=str(BINARY)),
    pytest.mark.timeout(180),
]
PROFILE = ModelConfig(id="org/local", harness="scripted", aliases=("claude-*",))


async def turn(rig: ProxyRig, home: Path, prompt: str, model: str = "org/local") -> Ended:
    """One `claude -p`, as `cortex env claude-code` sets it up."""
    assert isinstance(BINARY, Path)
    lines = claude_code(Target(rig.url, "k"), model, 65536).splitlines()
    environ = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    return await run(BINARY, "-p", prompt, "--output-format", "json", home=home, environ=environ)


async def nothing_left(rig: ProxyRig) -> None:
    """No request is under way, nor counted as such."""
    await rig.wait_idle()
    assert [i.in_flight for i in rig.fleet.snapshot.instances()] == [0]


def results(engine: ScriptedEngine) -> list[dict[str, Any]]:
    """Tool results that reached the engine."""
    return [m for c in engine.calls for m in asked(c)["messages"] if m["role"] == "tool"]


async def test_a_text_turn(tmp_path: Path) -> None:
    """A question is answered by a local model under a claude- name, with the engine's token counts."""
    async with (
        scripted_engine(say(SAY)) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[PROFILE]) as rig,
    ):
        ended = await turn(rig, tmp_path, "say hello", "claude-local")
        await nothing_left(rig)
        sent = asked(engine.calls[0])
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["result"], told["is_error"]) == ("hello", False)
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (11, 5)
    assert sent["model"] == "org/local"
    assert "x-anthropic-billing-header" not in sent["messages"][0]["content"]
    assert [m["role"] for m in sent["messages"]].count("system") == 1


async def test_a_tool_turn(tmp_path: Path) -> None:
    """Two calls at once are made, and both results come back to the model before it answers."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"the content of {name}\n")
    arguments = [json.dumps({"file_path": str(tmp_path / f"{n}.txt")}) for n in ("one", "two")]
    calls = wire(
        *(chunk(call(i, a, ident=f"c{i}", name="Read")) for i, a in enumerate(arguments)),
        chunk(finish="tool_calls"),
        usage_chunk(),
    )
    async with (
        scripted_engine(in_turn(say(calls), say(SAY))) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[PROFILE]) as rig,
    ):
        ended = await turn(rig, tmp_path, "read both")
        await nothing_left(rig)
        found = {m["tool_call_id"]: m["content"] for m in results(engine)}
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["result"] == "hello"
    assert {i: f"the content of {n}" in found[i] for i, n in (("c0", "one"), ("c1", "two"))} == {
        "c0": True,
        "c1": True,
    }


async def test_an_error_turn(tmp_path: Path) -> None:
    """An over-long prompt is asked once, and told as what it is with both numbers."""
    overflow = {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}
    async with (
        scripted_engine(answer({"error": overflow}, b"400 Bad Request")) as engine,
        running_proxy({"org/local": engine.url}, model_configs=[PROFILE]) as rig,
    ):
        ended = await turn(rig, tmp_path, "say hello")
        await nothing_left(rig)
        assert len(engine.calls) == 1
    assert ended.code == 1
    told = json.loads(ended.out)
    assert told["is_error"]
    assert "9000" in told["result"]
    assert "8192" in told["result"]
