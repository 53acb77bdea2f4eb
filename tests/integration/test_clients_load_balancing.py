"""Which instance a conversation goes to, as its clients name it, through every dialect."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from clients_kit import SAY, say
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
        """Let the node say how much context they have."""
        infos = [
            ready(f"m-{n}", "m", engine.url, parallel).model_copy(update={"context": context})
            for n, (engine, context) in enumerate(zip(self.engines, contexts, strict=True))
        ]
        self.rig.report("n1")
        self.rig.report("n1", *infos)

    async def ask(
        self, path: str, text: str = "hi", headers: dict[str, str] | None = None, **more: object
    ) -> httpx.Response:
        """A streamed request."""
        turn = (
            {"input": text}
            if path == RESPONSES
            else {"messages": [{"role": "user", "content": text}]}
        )
        body = {"model": "m", "max_tokens": 5, "stream": True} | turn | more
        return await self.http.post(path, json=body, headers=headers or {})


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two instances behind one plane."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine(say(SAY))) for _ in range(2)]
        rig = await stack.enter_async_context(running_proxy({}))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=rig.url, timeout=30))
        yield Pair(rig, http, (engines[0], engines[1]))


NAMED = {
    "explicit header": (CHAT, lambda s: {"headers": {"x-cortex-session": s}}),
    "Claude Code's header": (MESSAGES, lambda s: {"headers": {"x-claude-code-session-id": s}}),
    "Anthropic's user": (MESSAGES, lambda s: {"metadata": {"user_id": s}}),
    "Responses' cache key": (RESPONSES, lambda s: {"prompt_cache_key": s}),
    "chat's cache key": (CHAT, lambda s: {"prompt_cache_key": s}),
}


@pytest.mark.parametrize(("path", "named"), NAMED.values(), ids=NAMED.keys())
async def test_a_conversation_stays_where_it_was(pair: Pair, path: str, named) -> None:
    """The second turn goes to the instance of the first, also when another is listed before it by then."""
    pair.report((None, None))
    first = await pair.ask(path, **named("a"))
    pair.rig.fleet.ready("m").reverse()
    second = await pair.ask(path, **named("a"))
    other = await pair.ask(path, **named("b"))
    assert [a.headers["x-cortex-route"] for a in (first, second, other)] == [
        "least-busy",
        "session",
        "least-busy",
    ]
    at = [a.headers["x-cortex-instance"] for a in (first, second, other)]
    assert at == ["m-0", "m-0", "m-1"]


async def test_a_conversation_moves_when_its_instance_is_full(pair: Pair) -> None:
    """With all slots of its instance taken and another idle, waiting would cost more than the cache saves."""
    pair.report((None, None), parallel=1)
    header = {"headers": {"x-cortex-session": "a"}}
    assert (await pair.ask(CHAT, **header)).headers["x-cortex-instance"] == "m-0"
    (target,) = [t for t in pair.rig.fleet.ready("m") if t.id == "m-0"]
    for _ in range(2):
        pair.rig.fleet.begin_request(target)
    moved = await pair.ask(CHAT, **header)
    assert (moved.headers["x-cortex-instance"], moved.headers["x-cortex-route"]) == (
        "m-1",
        "least-busy",
    )
    for _ in range(2):
        pair.rig.fleet.end_request(target)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
async def test_a_long_prompt_goes_where_it_fits(pair: Pair, path: str) -> None:
    """The larger instance takes it although the small one is idle and comes first."""
    pair.report((100, 10_000))
    short, long = await pair.ask(path), await pair.ask(path, "word " * 500)
    assert [a.headers["x-cortex-instance"] for a in (short, long)] == ["m-0", "m-1"]
    assert long.headers["x-cortex-route"] == "context"


async def test_a_prompt_that_might_fit_is_the_largest_instances_to_judge(pair: Pair) -> None:
    """An estimate a little beyond every context refuses nothing: the engine counts exactly."""
    pair.report((100, 600))
    answer = await pair.ask(CHAT, "word " * 500)
    assert (answer.status_code, answer.headers["x-cortex-instance"]) == (200, "m-1")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (CHAT, "context_length_exceeded"),
        (MESSAGES, "prompt is too long: "),
        (RESPONSES, "context_length_exceeded"),
    ],
)
async def test_a_prompt_far_beyond_all_contexts_is_refused_unasked(
    pair: Pair, path: str, words: str
) -> None:
    """No engine computes on what cannot fit; the dialect's own overflow error has both numbers."""
    pair.report((100, 200))
    answer = await pair.ask(path, "word " * 2000)
    assert (answer.status_code, words in answer.text, "200" in answer.text) == (400, True, True)
    assert not pair.engines[0].calls
    assert not pair.engines[1].calls
    await pair.rig.wait_idle()


async def test_without_a_session_the_load_decides(pair: Pair) -> None:
    """A request that names no session goes to the idle instance, whoever asked before."""
    pair.report((None, None))
    busy = pair.rig.fleet.ready("m")[0]
    pair.rig.fleet.begin_request(busy)
    answer = await pair.ask(CHAT)
    pair.rig.fleet.end_request(busy)
    assert answer.headers["x-cortex-instance"] == "m-1"
    assert answer.headers["x-cortex-route"] == "least-busy"


async def test_counting_tokens_prefers_no_context(pair: Pair) -> None:
    """A prompt that fits nowhere can still be counted."""
    pair.report((100, 200))
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 2000}]}
    counted = await pair.http.post("/v1/messages/count_tokens", json=body)
    assert counted.json()["input_tokens"] > 2000
