"""The embedded worker process with the mistral.rs engine, through OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import wait_for
from rigs.lazy_import import openai

from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

NAME = "org/tiny"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@dataclass
class Worker:
    """A running worker."""

    process: subprocess.Popen[bytes]
    url: str


def start(weights: Path, *options: str) -> Worker:
    """Start a worker and wait until it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "neuron_server.embedded_engine.worker", "--model", str(weights)]
    process = subprocess.Popen(
        [*argv, "--name", NAME, "--port", str(port), *options],
        env=os.environ | {"RAYON_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listening() -> bool:
        assert process.poll() is None
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listening, 60)
    return Worker(process, f"http://127.0.0.1:{port}")


def stop(worker: Worker) -> None:
    """Stop a worker as the supervisor does."""
    worker.process.terminate()
    worker.process.wait(60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a 2 MB model whose answers never end by themselves."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=11)


@pytest.fixture(scope="module")
def worker(weights: Path) -> Iterator[Worker]:
    """Provide a worker that processes two requests at the same time."""
    worker = start(weights, "--parallel", "2")
    yield worker
    stop(worker)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Worker]:
    """Provide a worker that processes two requests at the same time, with a context that no test fills."""
    weights = write_tiny_gguf(tmp_path / "endless.gguf", context=1 << 20)
    worker = start(weights, "--parallel", "2")
    yield worker
    stop(worker)


@pytest.fixture
async def client(worker: Worker) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client."""
    async with openai.AsyncOpenAI(
        base_url=f"{worker.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_greedy_answers_are_the_same_streamed_or_not(client: openai.AsyncOpenAI):
    """At temperature 0 a stream, a complete answer and a repetition are equal."""
    request = {"model": NAME, "messages": HELLO, "max_tokens": 16, "temperature": 0}
    whole = await client.chat.completions.create(**request)
    stream = await client.chat.completions.create(**request, stream=True)
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    again = await client.chat.completions.create(**request)
    assert text == whole.choices[0].message.content == again.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16
    assert whole.choices[0].finish_reason == "length"
    assert whole.model == NAME


async def test_a_stop_string_ends_the_answer(client: openai.AsyncOpenAI):
    """The answer ends before the stop string, which is not sent."""
    request = {"model": NAME, "messages": HELLO, "temperature": 0}
    free = (
        (await client.chat.completions.create(**request, max_tokens=16)).choices[0].message.content
    )
    assert free is not None
    word = free.split()[2]
    stopped = await client.chat.completions.create(**request, max_tokens=16, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == free[: free.index(word)]


async def test_text_completions_stream_and_keep_their_first_space(client: openai.AsyncOpenAI):
    """A prompt is continued without a chat template, and no character of the answer is lost."""
    request = {"model": NAME, "prompt": "Hello", "max_tokens": 6, "temperature": 0}
    whole = await client.completions.create(**request)
    stream = await client.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len("Hello") - 1  # "lo" is one token: no template was added


async def test_an_answer_can_be_constrained_by_a_grammar(client: openai.AsyncOpenAI):
    """The grammar field of mistral.rs constrains the answer."""
    regex = {"grammar": {"type": "regex", "value": "yes|no"}}
    answer = await client.chat.completions.create(
        model=NAME, messages=HELLO, max_tokens=10, extra_body=regex
    )
    assert answer.choices[0].message.content in {"yes", "no"}
    lark = {"grammar": {"type": "lark", "value": 'start: "{\\"a\\":1}"'}}
    answer = await client.chat.completions.create(
        model=NAME, messages=HELLO, max_tokens=20, extra_body=lark
    )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}


async def test_tool_calls_have_openais_format(client: openai.AsyncOpenAI):
    """A call that the engine recognizes is returned, streamed or not, with the matching finish reason."""
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    grammar = {"grammar": {"type": "lark", "value": f"start: {json.dumps(call)}"}}
    request = {"model": NAME, "messages": HELLO, "tools": [TOOL], "max_tokens": 200}
    answer = await client.chat.completions.create(**request, extra_body=grammar)
    (tool_call,) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert tool_call.type == "function"
    assert (tool_call.function.name, json.loads(tool_call.function.arguments)) == (
        "weather",
        {"city": "Oslo"},
    )
    stream = await client.chat.completions.create(**request, extra_body=grammar, stream=True)
    deltas = [c.choices[0].delta async for c in stream if c.choices]
    (streamed,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert streamed.function is not None
    assert streamed.function.name == "weather"


async def test_invalid_requests_are_http_errors(client: openai.AsyncOpenAI, worker: Worker):
    """A wrong model, a prompt beyond the context and n=2 are HTTP errors, for streams too."""
    with pytest.raises(openai.NotFoundError, match="serves 'org/tiny'"):
        await client.chat.completions.create(model="other", messages=HELLO)
    long = [{"role": "user", "content": "x" * 9000}]
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError, match="4096"):
            await client.chat.completions.create(model=NAME, messages=long, stream=stream)
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        await client.chat.completions.create(model=NAME, messages=HELLO, n=2)
    async with httpx.AsyncClient(base_url=worker.url) as http:
        assert (await http.post("/v1/embeddings", json={})).json()["error"]["code"] == "not_found"
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == NAME


async def test_requests_beyond_the_parallel_limit_wait(endless: Worker):
    """Twelve requests with a limit of two all finish, and one that disconnects while it waits is dropped."""
    body = {"messages": HELLO, "max_tokens": 40}
    async with httpx.AsyncClient(base_url=endless.url, timeout=60) as http:
        long = [
            asyncio.create_task(
                http.post("/v1/chat/completions", json=body | {"max_tokens": 1_000_000})
            )
            for _ in range(2)
        ]
        async with asyncio.timeout(60):
            while (await http.get("/health")).json()["running"] < 2:
                pass
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        async with asyncio.timeout(60):
            while (await http.get("/health")).json()["waiting"] < 1:
                pass
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(60):
            while (await http.get("/health")).json()["waiting"] > 0:
                pass
        for task in long:
            task.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=body) for _ in range(12))
        )
        assert [a.json()["usage"]["completion_tokens"] for a in answers] == [40] * 12
        health = (await http.get("/health")).json()
        assert (health["running"], health["waiting"]) == (0, 0)


async def test_a_smaller_context_is_enforced(weights: Path):
    """With --context, longer prompts are rejected and answers end at the limit."""
    worker = start(weights, "--context", "64")
    try:
        async with httpx.AsyncClient(base_url=worker.url) as http:
            assert (await http.get("/health")).json()["context"] == 64
            url = "/v1/chat/completions"
            answer = (await http.post(url, json={"messages": HELLO})).json()
            assert answer["usage"]["completion_tokens"] <= 64
            long = [{"role": "user", "content": "x" * 100}]
            refused = await http.post(url, json={"messages": long})
            assert refused.status_code == 400
            assert "64 tokens" in refused.json()["error"]["message"]
    finally:
        stop(worker)


def test_tiny_models_are_deterministic(tmp_path: Path):
    """Equal seeds produce equal files, other seeds different ones; the size depends on the dimensions."""
    first = write_tiny_gguf(tmp_path / "a.gguf", seed=1).read_bytes()
    assert write_tiny_gguf(tmp_path / "b.gguf", seed=1).read_bytes() == first
    assert write_tiny_gguf(tmp_path / "c.gguf", seed=2).read_bytes() != first
    assert 1_000_000 < len(first) < 10_000_000
    larger = write_tiny_gguf(tmp_path / "d.gguf", hidden=256, feed_forward=768, layers=4)
    assert larger.stat().st_size > 4 * len(first)


def test_answers_end_by_themselves_with_answer_tokens(tmp_path: Path):
    """With answer_tokens a model gives short answers that end by themselves."""
    worker = start(write_tiny_gguf(tmp_path / "short.gguf", answer_tokens=10))
    try:
        with httpx.Client(base_url=worker.url, timeout=30) as http:
            answers = [
                http.post("/v1/chat/completions", json={"messages": HELLO}).json() for _ in range(8)
            ]
    finally:
        stop(worker)
    assert {a["choices"][0]["finish_reason"] for a in answers} == {"stop"}
    assert 1 <= sum(a["usage"]["completion_tokens"] for a in answers) / 8 < 100
