"""`cortex doctor --client` and `cortex env` against a whole gateway, over models that are good and bad at it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from clients_kit import SAY, answer, asked, say
from dialects_kit import call, chunk, usage_chunk, wire
from rigs import forkserver
from rigs.engine import SSE_HEAD, Call, Script, chunked, scripted_engine
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.engine_traits import EngineTraits

CONTEXT = 2000
NO_CANCEL = EngineTraits(cancels_unstreamed=False)
CALLS = wire(
    chunk(call(0, '{"city":"Paris"}', ident="a", name="get_weather")),
    chunk(call(1, '{"city":"Rome"}', ident="b", name="get_weather")),
    chunk(finish="tool_calls"),
    usage_chunk(),
)
THOUGHT = wire(
    chunk({"reasoning_content": "7 x 13"}),
    chunk({"content": "No."}),
    chunk(finish="stop"),
    usage_chunk(),
)
OVERFLOW = {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": CONTEXT}


async def good(call: Call) -> None:
    """A model that can all that clients need."""
    body = asked(call)
    if len(call.body) > 4 * CONTEXT:
        await answer({"error": OVERFLOW}, b"400 Bad Request")(call)
    elif "tools" in body:
        await say(CALLS)(call)
    elif "reasoning_effort" in body:
        await say(THOUGHT)(call)
    elif b"Count from" in call.body:
        await call.send(SSE_HEAD, chunked(wire(chunk({"content": "1"}), done=False)))
        await call.wait_closed()
    else:
        await say(SAY)(call)


async def bad(call: Call) -> None:
    """A model that calls no tools, sees nothing, and takes prompts of any length."""
    if b"image" in call.body:
        await answer({"error": {"message": "image input is not supported"}}, b"400 Bad")(call)
    elif b"91 prime" in call.body:
        await say(wire(chunk({"content": "It is"}), done=False))(call)
    else:
        await say(SAY)(call)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[InProcessGateway]:
    """A whole gateway over one model; its engine is asked to stream always, so scripts need only that."""
    model_config = ModelConfig(id="org/m", harness="scripted", context=CONTEXT, aliases=("m",))
    async with (
        scripted_engine(script) as engine,
        scripted_neuron({"org/m": engine.url}, traits=NO_CANCEL) as neuron,
        running_gateway(model_config, neurons={"n1": neuron.url}) as served,
    ):
        fleet = served.gateway.fleet
        async with asyncio.timeout(10):
            while not fleet.ready("org/m"):
                await asyncio.sleep(0.01)
        yield served


async def cortex(served: InProcessGateway, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run the command as a person would."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    argv = (*arguments, "--gateway", served.url)
    done = await asyncio.to_thread(forkserver.run, argv, environ=clean | environ)
    return done.returncode, done.stdout, done.stderr


async def doctor(served: InProcessGateway, client: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and findings by check."""
    code, out, err = await cortex(
        served, "doctor", "--client", client, "--model", "m", "-o", "json"
    )
    assert out, err
    return code, {item["check"]: item for item in json.loads(out)["items"]}


@pytest.mark.parametrize("client", ["claude-code", "anthropic", "codex", "openai"])
async def test_a_model_that_can_all_passes_every_probe(client: str) -> None:
    """No finding is a warning, the exit code is 0, and nothing is left under way."""
    async with serving(good) as served:
        code, found = await doctor(served, client)
        await served.wait_idle()
    assert {check: f["verdict"] for check, f in found.items() if f["verdict"] != "ok"} == {}
    assert code == 0
    assert ("token count" in found) is (client in {"claude-code", "anthropic"})
    assert found["parallel calls"]["about"].startswith("2 calls")
    assert found["thinking"]["about"] == "told apart from the answer"


@pytest.mark.parametrize(("client", "tool"), [("claude-code", "error"), ("openai", "warning")])
async def test_each_thing_that_a_model_can_not_is_told(client: str, tool: str) -> None:
    """What is missing has its reason; an agent without tools is an error, a library without them is not."""
    async with serving(bad) as served:
        code, found = await doctor(served, client)
    assert code == 1
    assert (found["tool call"]["verdict"], found["image"]["verdict"]) == (tool, "warning")
    assert "not supported" in found["image"]["about"]
    assert found["thinking"]["verdict"] == "error"
    assert "before the response was complete" in found["thinking"]["about"]
    assert found["overflow"]["verdict"] == "warning"
    assert found["stream"]["verdict"] == "ok"


async def test_a_model_that_is_not_there_is_one_finding() -> None:
    """Without the model nothing else is probed."""
    async with serving(good) as served:
        code, out, _ = await cortex(served, "doctor", "--client", "codex", "--model", "nope")
    assert code == 1
    assert "'nope' does not exist" in out
    assert len(out.splitlines()) == 2


async def test_the_printed_variables_are_what_a_shell_takes() -> None:
    """`cortex env claude-code` prints exports with the gateway, the key and the model's context."""
    async with serving(good) as served:
        code, out, _ = await cortex(served, "env", "claude-code", "m", CORTEX_API_KEY="it's secret")
    found = dict(shlex.split(line)[1].split("=", 1) for line in out.splitlines())
    assert code == 0
    assert found["ANTHROPIC_BASE_URL"] == served.url
    assert found["ANTHROPIC_AUTH_TOKEN"] == "it's secret"
    assert found["ANTHROPIC_MODEL"] == "m"
    assert found["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == str(CONTEXT)


async def test_the_printed_settings_are_toml_without_the_key() -> None:
    """`cortex env codex` names the variable that holds the key, never the key."""
    async with serving(good) as served:
        code, out, _ = await cortex(served, "env", "codex", "m", CORTEX_API_KEY="secret")
    found = tomllib.loads(out)
    assert (code, found["model"], found["model_context_window"]) == (0, "m", CONTEXT)
    provider = found["model_providers"][found["model_provider"]]
    assert provider["base_url"] == f"{served.url}/v1"
    assert provider["env_key"] == "CORTEX_API_KEY"
    assert "secret" not in out


async def test_settings_of_a_model_that_is_not_there_are_refused() -> None:
    """Exit code 3, the name, and nothing on stdout that a shell would run."""
    async with serving(good) as served:
        code, out, err = await cortex(served, "env", "claude-code", "nope")
    assert (code, out) == (3, "")
    assert "'nope' does not exist" in err
