"""The probes of a model for one kind of client, in the order in which their failures matter."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cortex_cli.doctor import chat, messages, responses
from cortex_cli.doctor.checks import Finding, error, ok, warning
from cortex_cli.doctor.clients import Client
from cortex_cli.doctor.http import Asker, Refused
from cortex_cli.doctor.probe import Broken, Event, Told, Wish

IDLE_LIMIT_S = 300.0
"""After this long without a byte Claude Code gives a stream up and asks again; others are no more patient."""

_CONTEXT = 4096
"""Assumed where the model list does not tell."""

_MOST_CONTEXT = 262_144
"""A prompt beyond a larger one than this would take minutes only to send."""

_FEWEST_WORDS = 16

_OVERFLOW = re.compile(r"prompt is too long: \d+ tokens > \d+ maximum")


class Dialect(Protocol):
    """One of the modules `messages`, `chat` and `responses`."""

    PATH: str
    HEADERS: dict[str, str]

    def body(self, model: str, request: Wish) -> dict[str, Any]:
        """A request."""
        ...

    def whole(self, answer: Any) -> Told:
        """What a whole answer says."""
        ...

    def streamed(self, events: Sequence[Event]) -> Told:
        """What a stream says."""
        ...


DIALECTS: dict[Client, Dialect] = {
    Client.CLAUDE_CODE: messages,
    Client.ANTHROPIC: messages,
    Client.CODEX: responses,
    Client.OPENAI: chat,
}
AGENTS = frozenset({Client.CLAUDE_CODE, Client.CODEX})
"""Useless without tools."""


class InFlight(Protocol):
    """Who sees how many requests of a model are under way."""

    async def until_idle(self, model: str, seconds: float) -> bool | None:
        """Whether none is within that time; None when that can't be seen."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """What is probed.

    Attributes:
        context: tokens that a request may use; None where the gateway does not know.
    """

    name: str
    context: int | None


class Prober:
    """Probes one model for one kind of client.

    Args:
        client: whose needs.
        model: which.
        asker: of the gateway.
        in_flight: sees whether a request has ended.
    """

    def __init__(self, client: Client, model: Model, asker: Asker, in_flight: InFlight) -> None:
        self._client = client
        self._dialect = DIALECTS[client]
        self._model = model
        self._asker = asker
        self._in_flight = in_flight

    async def findings(self) -> AsyncIterator[Finding]:
        """One for each probe, as they end."""
        probes: dict[str, Callable[[str], Awaitable[Finding]]] = {
            "stream": self._text,
            "whole answer": self._whole,
            "tool call": self._tool,
            "parallel calls": self._parallel,
            "thinking": self._thinking,
            "image": self._image,
            "token count": self._count,
            "overflow": self._overflow,
            "long prompt": self._long,
            "disconnect": self._disconnect,
        }
        if self._dialect is not messages:
            del probes["token count"]
        for check, probe in probes.items():
            try:
                yield await probe(check)
            except Broken as broken:
                yield error(check, str(broken))
            except (KeyError, TypeError, IndexError, AttributeError) as missing:
                yield error(check, f"the answer lacks what the dialect has: {missing}")

    async def _stream(self, request: Wish) -> Told:
        body = self._dialect.body(self._model.name, request)
        events = [event async for event in self._asker.stream(self._dialect.PATH, body)]
        return self._dialect.streamed(events)

    async def _text(self, check: str) -> Finding:
        told = await self._stream(Wish("Say hello."))
        if not told.text and not told.thinking:
            return error(check, "the events are in order, but say nothing")
        if not told.tokens_in or not told.tokens_out:
            return warning(check, "no token counts, so clients can't tell how full the context is")
        return ok(check, f"in order; {told.tokens_in} tokens in, {told.tokens_out} out")

    async def _whole(self, check: str) -> Finding:
        body = self._dialect.body(self._model.name, Wish("Say hello.", stream=False))
        told = self._dialect.whole(await self._asker.post(self._dialect.PATH, body))
        return ok(check, f"{told.tokens_out} tokens, ended with {told.stop!r}")

    async def _tool(self, check: str) -> Finding:
        prompt = "What is the weather in Paris? Use the tool."
        told = await self._stream(Wish(prompt, tools=True, max_tokens=512))
        if told.calls and "city" in told.calls[0]:
            return ok(check, f"called with {dict(told.calls[0])}")
        problem = "called without the argument it needs" if told.calls else "the tool is not called"
        serious = error if self._client in AGENTS else warning
        return serious(check, problem, "choose a model that is made for tools")

    async def _parallel(self, check: str) -> Finding:
        prompt = "What is the weather in Paris and in Rome? Use the tool for both at once."
        told = await self._stream(Wish(prompt, tools=True, max_tokens=512))
        if len(told.calls) > 1:
            return ok(check, f"{len(told.calls)} calls in one answer")
        if not told.calls:
            return warning(check, "the tool is not called")
        return warning(check, "one call at a time", "works, with more turns")

    async def _thinking(self, check: str) -> Finding:
        try:
            told = await self._stream(Wish("Is 91 prime?", thinking=True, max_tokens=512))
        except Refused as refused:
            return error(check, str(refused), "the client asks for it with every request")
        return ok(check, "told apart from the answer" if told.thinking else "asked for, none came")

    async def _image(self, check: str) -> Finding:
        try:
            await self._stream(Wish("Which colour is this?", image=True))
        except Refused as refused:
            return warning(check, str(refused), "screenshots need a model that sees")
        return ok(check, "taken")

    async def _count(self, check: str) -> Finding:
        asked = messages.body(self._model.name, Wish("Say hello."))
        body = {k: asked[k] for k in ("model", "messages")}
        counted = (await self._asker.post(f"{messages.PATH}/count_tokens", body))["input_tokens"]
        told = await self._stream(Wish("Say hello."))
        if told.tokens_in and abs(counted - told.tokens_in) > max(8, told.tokens_in):
            return warning(check, f"counted {counted}, the engine {told.tokens_in}")
        return ok(check, f"counted {counted}, the engine {told.tokens_in}")

    async def _overflow(self, check: str) -> Finding:
        context = self._model.context or _CONTEXT
        if context > _MOST_CONTEXT:
            return ok(check, f"not tried with a context of {context} tokens")
        try:
            await self._stream(Wish("word " * context * 2))
        except Refused as refused:
            return self._overflow_words(check, refused)
        return warning(
            check,
            "a prompt of twice the context was accepted: the client can't know when to compact",
            "set `context` in the model's profile",
        )

    def _overflow_words(self, check: str, refused: Refused) -> Finding:
        said = str(refused)
        if self._dialect is messages:
            understood = _OVERFLOW.search(said) is not None
        else:
            understood = refused.body["error"].get("code") == "context_length_exceeded"
        if understood:
            return ok(check, said)
        return error(check, f"not told in the words that clients know: {said}")

    async def _long(self, check: str) -> Finding:
        told = await self._read(min(self._model.context or _CONTEXT, 32_768) // 2)
        silence = self._asker.longest_silence_s
        if silence > IDLE_LIMIT_S:
            return error(
                check,
                f"silent for {silence:.0f} s; clients give up after {IDLE_LIMIT_S:.0f} s",
                "set [gateway] prefill_comment_after_s",
            )
        return ok(check, f"{told.tokens_in} tokens, never silent for longer than {silence:.1f} s")

    async def _read(self, words: int) -> Told:
        """Have a prompt of so many words computed, or of fewer: some tokenizers make several tokens of one."""
        try:
            return await self._stream(Wish("word " * words, max_tokens=16))
        except Refused:
            if words < _FEWEST_WORDS:
                raise
            return await self._read(words // 4)

    async def _disconnect(self, check: str) -> Finding:
        body = self._dialect.body(
            self._model.name, Wish("Count from 1 to 2000.", max_tokens=min(4096, _CONTEXT // 2))
        )
        async with contextlib.aclosing(self._asker.stream(self._dialect.PATH, body)) as events:
            await anext(events)
        idle = await self._in_flight.until_idle(self._model.name, 5.0)
        if idle is None:
            return warning(check, "can't be seen without an operator key")
        if idle:
            return ok(check, "the engine stops when the client leaves")
        return error(check, "5 s after the client left, a request is still under way")
