"""Session affinity and context-aware routing, through every dialect."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from clients_kit import HELLO_STREAM, stream_response
from rigs.engine import ScriptedEngine, scripted_engine
from rigs.proxy import ProxyRig, ready, running_proxy

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


@dataclass
class Pair:
    """Two instances of "m", a small and a large one."""

    rig: ProxyRig
    http: httpx.AsyncClient
    engines: tuple[ScriptedEngine, ScriptedEngine]

    def report(self, contexts: tuple[int | None, int | None], parallel: int = 2) -> None:
        """Report the context of each instance."""
        instances = [
            ready(f"m-{n}", "m", engine.url, parallel).model_copy(update={"context": context})
            for n, (engine, context) in enumerate(zip(self.engines, contexts, strict=True))
        ]
        self.rig.report("n1")
        self.rig.report("n1", *instances)

    async def send(
        self, path: str, text: str = "hi", headers: dict[str, str] | None = None, **more: object
    ) -> httpx.Response:
        """Send a streamed request."""
        turn = (
            {"input": text, "max_output_tokens": 16}
            if path == RESPONSES
            else {"messages": [{"role": "user", "content": text}], "max_tokens": 5}
        )
        body = {"model": "m", "stream": True} | turn | more
        return await self.http.post(path, json=body, headers=headers or {})


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Run two instances behind one gateway."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(scripted_engine(stream_response(HELLO_STREAM)))
            for _ in range(2)
        ]
        rig = await stack.enter_async_context(running_proxy({}))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=rig.url, timeout=30))
        yield Pair(rig, http, (engines[0], engines[1]))


SESSION_SOURCES = {
    "explicit header": (CHAT, lambda s: {"headers": {"x-cortex-session": s}}),
    "Claude Code's header": (MESSAGES, lambda s: {"headers": {"x-claude-code-session-id": s}}),
    "Anthropic's user": (MESSAGES, lambda s: {"metadata": {"user_id": s}}),
    "Responses' cache key": (RESPONSES, lambda s: {"prompt_cache_key": s}),
    "chat's cache key": (CHAT, lambda s: {"prompt_cache_key": s}),
}


@pytest.mark.parametrize(
    ("path", "with_session"), SESSION_SOURCES.values(), ids=SESSION_SOURCES.keys()
)
async def test_conversation_stays_on_its_instance(pair: Pair, path: str, with_session) -> None:
    """The second turn goes to the instance of the first, even if another is listed first by then."""
    pair.report((None, None))
    first = await pair.send(path, **with_session("a"))
    pair.rig.fleet.ready("m").reverse()
    second = await pair.send(path, **with_session("a"))
    other = await pair.send(path, **with_session("b"))
    assert [a.headers["x-cortex-route"] for a in (first, second, other)] == [
        "least-busy",
        "session",
        "least-busy",
    ]
    at = [a.headers["x-cortex-instance"] for a in (first, second, other)]
    assert at == ["m-0", "m-0", "m-1"]


async def test_conversation_moves_if_its_instance_is_full(pair: Pair) -> None:
    """If all slots of its instance are taken and another is idle, waiting would cost more than the cache saves."""
    pair.report((None, None), parallel=1)
    header = {"headers": {"x-cortex-session": "a"}}
    assert (await pair.send(CHAT, **header)).headers["x-cortex-instance"] == "m-0"
    (endpoint,) = [t for t in pair.rig.fleet.ready("m") if t.id == "m-0"]
    for _ in range(2):
        pair.rig.fleet.begin_request(endpoint)
    response = await pair.send(CHAT, **header)
    assert (response.headers["x-cortex-instance"], response.headers["x-cortex-route"]) == (
        "m-1",
        "least-busy",
    )
    for _ in range(2):
        pair.rig.fleet.end_request(endpoint)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
async def test_long_prompt_goes_to_an_instance_with_enough_context(pair: Pair, path: str) -> None:
    """The larger instance gets it, although the small one is idle and listed first."""
    pair.report((100, 10_000))
    short, long = await pair.send(path), await pair.send(path, "word " * 500)
    assert [a.headers["x-cortex-instance"] for a in (short, long)] == ["m-0", "m-1"]
    assert long.headers["x-cortex-route"] == "context"


async def test_prompt_that_might_fit_goes_to_the_largest_instance(pair: Pair) -> None:
    """An estimate slightly above every context rejects nothing: the engine counts exactly."""
    pair.report((100, 600))
    response = await pair.send(CHAT, "word " * 500)
    assert (response.status_code, response.headers["x-cortex-instance"]) == (200, "m-1")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (CHAT, "context_length_exceeded"),
        (MESSAGES, "prompt is too long: "),
        (RESPONSES, "context_length_exceeded"),
    ],
)
async def test_prompt_far_beyond_all_contexts_is_rejected(pair: Pair, path: str, text: str) -> None:
    """No engine is asked; the overflow error of the dialect has both numbers."""
    pair.report((100, 200))
    response = await pair.send(path, "word " * 2000)
    assert (response.status_code, text in response.text, "200" in response.text) == (
        400,
        True,
        True,
    )
    assert not pair.engines[0].calls
    assert not pair.engines[1].calls
    await pair.rig.wait_idle()


async def test_request_without_a_session_goes_to_the_idle_instance(pair: Pair) -> None:
    """Without a session, the load decides."""
    pair.report((None, None))
    busy = pair.rig.fleet.ready("m")[0]
    pair.rig.fleet.begin_request(busy)
    response = await pair.send(CHAT)
    pair.rig.fleet.end_request(busy)
    assert response.headers["x-cortex-instance"] == "m-1"
    assert response.headers["x-cortex-route"] == "least-busy"


async def test_counting_tokens_ignores_the_context(pair: Pair) -> None:
    """The tokens of a prompt that fits nowhere can still be counted."""
    pair.report((100, 200))
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 2000}]}
    response = await pair.http.post("/v1/messages/count_tokens", json=body)
    assert response.json()["input_tokens"] > 2000
