"""HTTP clients of other languages stream through the gateway."""

from __future__ import annotations

import asyncio
import json
import shutil

import aiohttp
import pytest
from clients import build_go
from rigs.engine import STREAM, scripted_engine
from rigs.proxy import running_proxy

BODY = json.dumps(
    {"model": "m", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
)

NODE = """
const [url, body] = process.argv.slice(1);
for (let i = 0; i < 3; i++) {
  const answer = await fetch(url, {method: "POST", body, headers: {"content-type": "application/json"}});
  let text = "";
  for await (const piece of answer.body) text += Buffer.from(piece).toString();
  if (i === 2) process.stdout.write(text);
}
"""


def command(client: str, url: str) -> list[str]:
    """Return a client's command line; skip the test if it is not installed."""
    if client == "go":
        built = build_go.find_or_build()
        if isinstance(built, str):
            pytest.skip(built)
        return [str(built), url, BODY]
    program = {"curl": "curl", "curl-1.0": "curl", "node": "node"}[client]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if client == "node":
        return ["node", "--input-type=module", "-e", NODE, url, BODY]
    version = "--http1.0" if client == "curl-1.0" else "--http1.1"
    return ["curl", "-sN", version, "-H", "content-type: application/json", "-d", BODY, url]


@pytest.mark.parametrize("client", ["curl", "curl-1.0", "node", "go"])
async def test_a_client_of_another_language_gets_the_stream(client):
    """Three consecutive requests over the client's connections return the engine's bytes."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        argv = command(client, f"{rig.url}/v1/chat/completions")
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert (process.returncode, out) == (0, STREAM), err.decode()
        await rig.wait_idle()


async def test_aiohttp_gets_the_stream():
    """Three consecutive requests over the client's connections return the engine's bytes."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        aiohttp.ClientSession(headers={"content-type": "application/json"}) as session,
    ):
        for _ in range(3):
            async with session.post(f"{rig.url}/v1/chat/completions", data=BODY) as answer:
                assert answer.status == 200
                assert await answer.read() == STREAM
        await rig.wait_idle()
