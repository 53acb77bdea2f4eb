"""`cortex doctor --client` and `cortex env` against a gateway, with capable and incapable models."""

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
from clients_kit import HELLO_STREAM, json_response, request_body, stream_response
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs import forkserver
from rigs.engine import SSE_HEAD, Call, Script, chunked, scripted_engine
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.engine_traits import EngineTraits

CONTEXT = 2000
NO_CANCEL = EngineTraits(cancels_unstreamed=False)
CALLS_STREAM = sse_stream(
    chunk(call_delta(0, '{"city":"Paris"}', call_id="a", name="get_weather")),
    chunk(call_delta(1, '{"city":"Rome"}', call_id="b", name="get_weather")),
    chunk(finish="tool_calls"),
    usage_chunk(),
)
THINKING_STREAM = sse_stream(
    chunk({"reasoning_content": "7 x 13"}),
    chunk({"content": "No."}),
    chunk(finish="stop"),
    usage_chunk(),
)
OVERFLOW = {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": CONTEXT}


async def capable_model(call: Call) -> None:
    """Respond as a model that supports everything that clients need."""
    body = request_body(call)
    if len(call.body) > 4 * CONTEXT:
        await json_response({"error": OVERFLOW}, b"400 Bad Request")(call)
    elif "tools" in body:
        await stream_response(CALLS_STREAM)(call)
    elif "reasoning_effort" in body:
        await stream_response(THINKING_STREAM)(call)
    elif b"Count from" in call.body:
        await call.send(SSE_HEAD, chunked(sse_stream(chunk({"content": "1"}), done=False)))
        await call.wait_closed()
    else:
        await stream_response(HELLO_STREAM)(call)


async def incapable_model(call: Call) -> None:
    """Respond as a model that calls no tools, accepts no images, and takes prompts of any length."""
    if b"image" in call.body:
        await json_response({"error": {"message": "image input is not supported"}}, b"400 Bad")(
            call
        )
    elif b"91 prime" in call.body:
        await stream_response(sse_stream(chunk({"content": "It is"}), done=False))(call)
    else:
        await stream_response(HELLO_STREAM)(call)


@contextlib.asynccontextmanager
async def running_with(script: Script) -> AsyncIterator[InProcessGateway]:
    """Run a gateway over one model. Its engine is always asked to stream, so scripts need only that."""
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
    """Run the cortex command."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    argv = (*arguments, "--gateway", served.url)
    completed = await asyncio.to_thread(forkserver.run, argv, environ=inherited | environ)
    return completed.returncode, completed.stdout, completed.stderr


async def doctor(served: InProcessGateway, client: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the findings by check."""
    code, out, err = await cortex(
        served, "doctor", "--client", client, "--model", "m", "-o", "json"
    )
    assert out, err
    return code, {item["check"]: item for item in json.loads(out)["items"]}


@pytest.mark.parametrize("client", ["claude-code", "anthropic", "codex", "openai"])
async def test_capable_model_passes_every_probe(client: str) -> None:
    """No finding is a warning, the exit code is 0, and no request stays in flight."""
    async with running_with(capable_model) as served:
        code, findings = await doctor(served, client)
        await served.wait_idle()
    assert {check: f["verdict"] for check, f in findings.items() if f["verdict"] != "ok"} == {}
    assert code == 0
    assert ("token count" in findings) is (client in {"claude-code", "anthropic"})
    assert findings["parallel calls"]["message"].startswith("2 calls")
    assert findings["thinking"]["message"] == "separate from the text"


@pytest.mark.parametrize(("client", "tool"), [("claude-code", "error"), ("openai", "warning")])
async def test_missing_capabilities_are_reported(client: str, tool: str) -> None:
    """Each has its reason; missing tools are an error for an agent and a warning for a library."""
    async with running_with(incapable_model) as served:
        code, findings = await doctor(served, client)
    assert code == 1
    assert (findings["tool call"]["verdict"], findings["image"]["verdict"]) == (tool, "warning")
    assert "not supported" in findings["image"]["message"]
    assert findings["thinking"]["verdict"] == "error"
    assert "before the response was complete" in findings["thinking"]["message"]
    assert findings["overflow"]["verdict"] == "warning"
    assert findings["stream"]["verdict"] == "ok"


async def test_unknown_model_is_the_only_finding() -> None:
    """Nothing else is probed."""
    async with running_with(capable_model) as served:
        code, out, _ = await cortex(served, "doctor", "--client", "codex", "--model", "nope")
    assert code == 1
    assert "'nope' does not exist" in out
    assert len(out.splitlines()) == 2


async def test_env_claude_code_prints_shell_exports() -> None:
    """The exports have the gateway, the key and the model's context."""
    async with running_with(capable_model) as served:
        code, out, _ = await cortex(served, "env", "claude-code", "m", CORTEX_API_KEY="it's secret")
    findings = dict(shlex.split(line)[1].split("=", 1) for line in out.splitlines())
    assert code == 0
    assert findings["ANTHROPIC_BASE_URL"] == served.url
    assert findings["ANTHROPIC_AUTH_TOKEN"] == "it's secret"
    assert findings["ANTHROPIC_MODEL"] == "m"
    assert findings["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == str(CONTEXT)


async def test_env_codex_prints_toml_without_the_key() -> None:
    """The settings name the variable that holds the key, never the key."""
    async with running_with(capable_model) as served:
        code, out, _ = await cortex(served, "env", "codex", "m", CORTEX_API_KEY="secret")
    findings = tomllib.loads(out)
    assert (code, findings["model"], findings["model_context_window"]) == (0, "m", CONTEXT)
    provider = findings["model_providers"][findings["model_provider"]]
    assert provider["base_url"] == f"{served.url}/v1"
    assert provider["env_key"] == "CORTEX_API_KEY"
    assert "secret" not in out


async def test_env_for_an_unknown_model_fails() -> None:
    """Exit code 3, the name on stderr, and nothing on stdout that a shell would execute."""
    async with running_with(capable_model) as served:
        code, out, err = await cortex(served, "env", "claude-code", "nope")
    assert (code, out) == (3, "")
    assert "'nope' does not exist" in err
