"""The probes of a model for one client, most important first."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cortex_cli.doctor import chat, messages, responses
from cortex_cli.doctor.clients import Client
from cortex_cli.doctor.findings import Finding, error, ok, warning
from cortex_cli.doctor.probe import InvalidResponse, ProbeRequest, ProbeResponse, StreamEvent
from cortex_cli.doctor.transport import ProbeTransport, RequestRejected

IDLE_LIMIT_S = 300.0
"""Seconds without a byte after which Claude Code aborts a stream and retries; other clients wait no longer."""

_DEFAULT_CONTEXT = 4096
"""Assumed if the model list has no context length."""

_MAX_OVERFLOW_CONTEXT = 262_144
"""Sending a prompt beyond a larger context would take minutes."""

_MIN_WORDS = 16

_OVERFLOW = re.compile(r"prompt is too long: \d+ tokens > \d+ maximum")


class Dialect(Protocol):
    """One of the modules `messages`, `chat` and `responses`."""

    PATH: str
    HEADERS: dict[str, str]

    def build_body(self, model: str, request: ProbeRequest) -> dict[str, Any]:
        """Return the body of a request."""
        ...

    def parse_body(self, answer: Any) -> ProbeResponse:
        """Parse a non-streaming response."""
        ...

    def parse_stream(self, events: Sequence[StreamEvent]) -> ProbeResponse:
        """Parse a stream."""
        ...


DIALECTS: dict[Client, Dialect] = {
    Client.CLAUDE_CODE: messages,
    Client.ANTHROPIC: messages,
    Client.CODEX: responses,
    Client.OPENAI: chat,
}
AGENTS = frozenset({Client.CLAUDE_CODE, Client.CODEX})
"""Clients that are useless without tools."""


class InFlight(Protocol):
    """Access to the number of a model's requests in flight."""

    async def until_idle(self, model: str, seconds: float) -> bool | None:
        """Return whether the model became idle within this time; None if that is unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """The model that is probed.

    Attributes:
        name: name or alias.
        context: tokens that a request can use; None if unknown.
    """

    name: str
    context: int | None


class Prober:
    """Probes one model for one client.

    Args:
        client: the client whose requirements are checked.
        model: the model.
        transport: sends the requests.
        in_flight: reports whether a request has ended.
    """

    def __init__(
        self, client: Client, model: ProbedModel, transport: ProbeTransport, in_flight: InFlight
    ) -> None:
        self._client = client
        self._dialect = DIALECTS[client]
        self._model = model
        self._transport = transport
        self._in_flight = in_flight

    async def findings(self) -> AsyncIterator[Finding]:
        """Run the probes and yield the finding of each."""
        probes: dict[str, Callable[[str], Awaitable[Finding]]] = {
            "stream": self._text,
            "no stream": self._no_stream,
            "tool call": self._tool,
            "parallel calls": self._parallel,
            "thinking": self._thinking,
            "image": self._image,
            "token count": self._count,
            "overflow": self._overflow,
            "long prompt": self._long_prompt,
            "disconnect": self._disconnect,
        }
        if self._dialect is not messages:
            del probes["token count"]
        for check, probe in probes.items():
            try:
                yield await probe(check)
            except InvalidResponse as invalid:
                yield error(check, str(invalid))
            except (KeyError, TypeError, IndexError, AttributeError) as missing:
                yield error(check, f"the response lacks a required field: {missing}")

    async def _stream(self, request: ProbeRequest) -> ProbeResponse:
        body = self._dialect.build_body(self._model.name, request)
        events = [event async for event in self._transport.stream(self._dialect.PATH, body)]
        return self._dialect.parse_stream(events)

    async def _text(self, check: str) -> Finding:
        response = await self._stream(ProbeRequest("Say hello."))
        if not response.text and not response.thinking:
            return error(check, "the events are in order but contain no text")
        if not response.tokens_in or not response.tokens_out:
            return warning(
                check, "no token counts, so clients can't compute how full the context is"
            )
        return ok(check, f"in order; {response.tokens_in} tokens in, {response.tokens_out} out")

    async def _no_stream(self, check: str) -> Finding:
        body = self._dialect.build_body(self._model.name, ProbeRequest("Say hello.", stream=False))
        response = self._dialect.parse_body(await self._transport.post(self._dialect.PATH, body))
        return ok(check, f"{response.tokens_out} tokens, ended with {response.stop!r}")

    async def _tool(self, check: str) -> Finding:
        prompt = "What is the weather in Paris? Use the tool."
        response = await self._stream(ProbeRequest(prompt, tools=True, max_tokens=512))
        if response.calls and "city" in response.calls[0]:
            return ok(check, f"called with {dict(response.calls[0])}")
        problem = (
            "called without the argument it needs" if response.calls else "the tool is not called"
        )
        severity = error if self._client in AGENTS else warning
        return severity(check, problem, "choose a model that is trained for tool use")

    async def _parallel(self, check: str) -> Finding:
        prompt = "What is the weather in Paris and in Rome? Use the tool for both at once."
        response = await self._stream(ProbeRequest(prompt, tools=True, max_tokens=512))
        if len(response.calls) > 1:
            return ok(check, f"{len(response.calls)} calls in one response")
        if not response.calls:
            return warning(check, "the tool is not called")
        return warning(check, "one call at a time", "works, but needs more turns")

    async def _thinking(self, check: str) -> Finding:
        try:
            response = await self._stream(
                ProbeRequest("Is 91 prime?", thinking=True, max_tokens=512)
            )
        except RequestRejected as rejected:
            return error(check, str(rejected), "the client requests it in every request")
        return ok(
            check, "separate from the text" if response.thinking else "requested, but none sent"
        )

    async def _image(self, check: str) -> Finding:
        try:
            await self._stream(ProbeRequest("Which color is this?", image=True))
        except RequestRejected as rejected:
            return warning(check, str(rejected), "screenshots need a vision model")
        return ok(check, "accepted")

    async def _count(self, check: str) -> Finding:
        payload = messages.build_body(self._model.name, ProbeRequest("Say hello."))
        body = {k: payload[k] for k in ("model", "messages")}
        counted = (await self._transport.post(f"{messages.PATH}/count_tokens", body))[
            "input_tokens"
        ]
        response = await self._stream(ProbeRequest("Say hello."))
        if response.tokens_in and abs(counted - response.tokens_in) > max(8, response.tokens_in):
            return warning(check, f"counted {counted}, the engine {response.tokens_in}")
        return ok(check, f"counted {counted}, the engine {response.tokens_in}")

    async def _overflow(self, check: str) -> Finding:
        context = self._model.context or _DEFAULT_CONTEXT
        if context > _MAX_OVERFLOW_CONTEXT:
            return ok(check, f"skipped for a context of {context} tokens")
        try:
            await self._stream(ProbeRequest("word " * context * 2))
        except RequestRejected as rejected:
            return self._overflow_finding(check, rejected)
        return warning(
            check,
            "a prompt of twice the context was accepted, so clients can't know when to compact",
            "set `context` in the model config",
        )

    def _overflow_finding(self, check: str, rejected: RequestRejected) -> Finding:
        message = str(rejected)
        if self._dialect is messages:
            recognized = _OVERFLOW.search(message) is not None
        else:
            recognized = rejected.body["error"].get("code") == "context_length_exceeded"
        if recognized:
            return ok(check, message)
        return error(check, f"clients do not recognize this error: {message}")

    async def _long_prompt(self, check: str) -> Finding:
        response = await self._send_words(min(self._model.context or _DEFAULT_CONTEXT, 32_768) // 2)
        silence = self._transport.longest_silence_s
        if silence > IDLE_LIMIT_S:
            return error(
                check,
                f"silent for {silence:.0f} s; clients time out after {IDLE_LIMIT_S:.0f} s",
                "set [gateway] prefill_comment_after_s",
            )
        return ok(check, f"{response.tokens_in} tokens, longest silence {silence:.1f} s")

    async def _send_words(self, words: int) -> ProbeResponse:
        """Send a prompt of this many words, or fewer if it is rejected, because tokenizers can split words."""
        try:
            return await self._stream(ProbeRequest("word " * words, max_tokens=16))
        except RequestRejected:
            if words < _MIN_WORDS:
                raise
            return await self._send_words(words // 4)

    async def _disconnect(self, check: str) -> Finding:
        body = self._dialect.build_body(
            self._model.name,
            ProbeRequest("Count from 1 to 2000.", max_tokens=min(4096, _DEFAULT_CONTEXT // 2)),
        )
        async with contextlib.aclosing(self._transport.stream(self._dialect.PATH, body)) as events:
            await anext(events)
        idle = await self._in_flight.until_idle(self._model.name, 5.0)
        if idle is None:
            return warning(check, "unknown without a key with the operator scope")
        if idle:
            return ok(check, "the engine stops when the client disconnects")
        return error(check, "the request is still in flight 5 s after the client disconnected")
