"""The clients of JavaScript through the gateway: OpenAI's and Anthropic's SDKs, the AI SDK, and LangChain."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from clients.fetch_npm import NODE_PACKAGES, find_or_install
from clients.programs import run
from clients_kit import (
    HELLO_STREAM,
    completion,
    json_response,
    request_body,
    stream_and_disconnect,
    stream_response,
)
from dialects_kit import call_delta, chunk, sse_stream, usage_chunk
from rigs.engine import Call, scripted_engine
from rigs.proxy import running_proxy

MODULES = find_or_install(NODE_PACKAGES)
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(isinstance(MODULES, str), reason=str(MODULES)),
    pytest.mark.skipif(NODE is None, reason="no node"),
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("node"),
]
PROGRAM = Path(__file__).with_name("node_clients.mjs")
_HALF = sse_stream(chunk({"content": "half"}), done=False)
_WEATHER = sse_stream(
    chunk(call_delta(0, '{"city":"Rome"}', call_id="c1", name="weather")),
    chunk(finish="tool_calls"),
    usage_chunk(),
)


async def _model(call: Call) -> None:
    """Say hello, break off in the middle of an answer, or call a tool, as the last message asks."""
    body = request_body(call)
    last = body["messages"][-1]
    content = last["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    if text == "break":
        await stream_and_disconnect(_HALF)(call)
    elif text == "weather":
        await stream_response(_WEATHER)(call)
    elif last["role"] == "tool":
        assert text == "sunny in Rome"
        await stream_response(HELLO_STREAM)(call)
    elif body.get("stream"):
        await stream_response(HELLO_STREAM)(call)
    else:
        await json_response(completion())(call)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all cases in one program; each has the text that its client got, or an error."""
    assert isinstance(MODULES, Path)
    assert NODE is not None

    async def run_all() -> dict[str, Any]:
        async with (
            scripted_engine(_model) as engine,
            running_proxy({"m": engine.url}) as rig,
        ):
            home = tmp_path_factory.mktemp("node")
            (home / "node_modules").symlink_to(MODULES)
            completed = await run(Path(NODE or ""), str(PROGRAM), rig.url, home=home, environ={})
        assert completed.code == 0, completed.err
        found: dict[str, Any] = json.loads(completed.out.splitlines()[-1])
        return found

    return asyncio.run(run_all())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("openai: chat", marks=pytest.mark.compatibility("openai (Node)", "chat")),
        pytest.param(
            "openai: responses", marks=pytest.mark.compatibility("openai (Node)", "responses")
        ),
        pytest.param(
            "openai: stored responses",
            marks=pytest.mark.compatibility("openai (Node)", "stored responses"),
        ),
        pytest.param(
            "anthropic: messages",
            marks=pytest.mark.compatibility("@anthropic-ai/sdk (Node)", "messages"),
        ),
        pytest.param("ai: chat", marks=pytest.mark.compatibility("AI SDK (Node)", "chat")),
        pytest.param("ai: chat tools", marks=pytest.mark.compatibility("AI SDK (Node)", "tools")),
        "ai: compatible chat",
        pytest.param(
            "ai: responses", marks=pytest.mark.compatibility("AI SDK (Node)", "responses")
        ),
        pytest.param(
            "ai: responses tools",
            marks=pytest.mark.compatibility("AI SDK (Node)", "stored responses"),
        ),
        pytest.param("ai: messages", marks=pytest.mark.compatibility("AI SDK (Node)", "messages")),
        pytest.param(
            "langchain: chat", marks=pytest.mark.compatibility("LangChain (Node)", "chat")
        ),
        pytest.param(
            "langchain: responses",
            marks=pytest.mark.compatibility("LangChain (Node)", "responses"),
        ),
    ],
)
def test_answer_arrives(results: dict[str, Any], case: str) -> None:
    """The text of the engine, after a tool call where there are tools."""
    assert results[case] == {"text": "hello"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            "openai: failed chat", marks=pytest.mark.compatibility("openai (Node)", "failures")
        ),
        "openai: failed responses",
        pytest.param(
            "anthropic: failed messages",
            marks=pytest.mark.compatibility("@anthropic-ai/sdk (Node)", "failures"),
        ),
        pytest.param(
            "ai: failed chat", marks=pytest.mark.compatibility("AI SDK (Node)", "failures")
        ),
        "ai: failed compatible chat",
        "ai: failed responses",
        "ai: failed messages",
        pytest.param(
            "langchain: failed chat",
            marks=pytest.mark.compatibility("LangChain (Node)", "failures"),
        ),
        "langchain: failed responses",
    ],
)
def test_failure_in_a_stream_is_an_error(results: dict[str, Any], case: str) -> None:
    """With the gateway's message; half an answer is not taken for a whole one."""
    assert "the engine broke off" in results[case]["error"]
