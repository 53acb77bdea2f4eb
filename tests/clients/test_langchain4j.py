"""LangChain4j through the gateway."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clients.fetch_maven import find_or_fetch
from clients.programs import run
from clients_kit import HELLO_STREAM, stream_and_disconnect, stream_response
from dialects_kit import chunk, sse_stream
from rigs.engine import Script, scripted_engine
from rigs.proxy import running_proxy

CLASSPATH = find_or_fetch()
JAVA = shutil.which("java")
pytestmark = [
    pytest.mark.maven,
    pytest.mark.skipif(not CLASSPATH, reason="no LangChain4j: CORTEX_TEST_MAVEN=1 fetches it"),
    pytest.mark.skipif(JAVA is None, reason="no java"),
    pytest.mark.timeout(180),
]
PROGRAM = Path(__file__).with_name("LangChain4jChat.java")


async def _result(script: Script, home: Path) -> str:
    async with scripted_engine(script) as engine, running_proxy({"m": engine.url}) as rig:
        arguments = ("-cp", CLASSPATH, str(PROGRAM), f"{rig.url}/v1", "hi")
        completed = await run(Path(JAVA or ""), *arguments, home=home, environ={})
    assert completed.code == 0, completed.err
    return completed.out.strip()


@pytest.mark.compatibility("LangChain4j (Java)", "chat")
async def test_answer_arrives(tmp_path: Path) -> None:
    """Its HTTP client offers HTTP/2 with each request."""
    assert await _result(stream_response(HELLO_STREAM), tmp_path) == "answer: hello"


@pytest.mark.compatibility("LangChain4j (Java)", "failures")
async def test_failure_in_a_stream_is_an_error(tmp_path: Path) -> None:
    """It ignores the error event, but not the cut after it."""
    half = sse_stream(chunk({"content": "half"}), done=False)
    assert (await _result(stream_and_disconnect(half), tmp_path)).startswith("error: ")
