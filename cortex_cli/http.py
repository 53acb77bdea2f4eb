"""HTTP client for the gateway's public routes: JSON, event streams, and transport errors as `CortexError`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from cortex_cli.client import GatewayTarget
from cortex_common.client.control import describe_http_error, tls_verify
from cortex_common.errors import CortexError, UpstreamFailed, UpstreamTimeout, from_envelope
from cortex_common.sse import SseParser


class ErrorResponse(Exception):
    """A response with a status of 400 or above.

    Attributes:
        status: HTTP status.
        body: body of the response.
        call: method and path of the request.
    """

    def __init__(self, status: int, body: bytes, call: str) -> None:
        super().__init__(f"{call} returned {status}")
        self.status = status
        self.body = body
        self.call = call

    def to_error(self) -> CortexError:
        """Return the error that the gateway or the engine reported, by its code."""
        return from_envelope(self.body, self.status, self.call)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event.

    Attributes:
        name: type of the event; "message" when it has none.
        data: payload.
        at: seconds since the request was sent.
    """

    name: str
    data: bytes
    at: float


class EventStream:
    """The events of a streamed response.

    Attributes:
        headers: headers of the response.
        on_comment: called with the text of each comment.
        longest_silence_s: longest time in seconds without a byte so far, including the time to the response.
    """

    def __init__(self, response: httpx.Response, sent_at: float) -> None:
        self.headers = response.headers
        self.on_comment: Callable[[str], None] = lambda _comment: None
        self.longest_silence_s = 0.0
        self._response = response
        self._sent_at = self._last_byte_at = sent_at
        self._mark_byte()

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        """Yield the events; comments are passed to `on_comment`.

        A stream that is cut ends like any other: the gateway cuts one that failed, after an event that says why. The
        last event shows whether the response is complete.
        """
        parser = SseParser(on_comment=lambda text: self.on_comment(text.decode("utf-8", "replace")))
        with contextlib.suppress(httpx.RemoteProtocolError):
            async for chunk in self._response.aiter_bytes():
                self._mark_byte()
                for event in parser.feed(chunk):
                    yield ServerEvent(
                        event.name or "message", event.data, self._last_byte_at - self._sent_at
                    )
        for event in parser.close():
            yield ServerEvent(
                event.name or "message", event.data, time.perf_counter() - self._sent_at
            )

    def _mark_byte(self) -> None:
        now = time.perf_counter()
        self.longest_silence_s = max(self.longest_silence_s, now - self._last_byte_at)
        self._last_byte_at = now


class GatewayHttp:
    """A client of one gateway.

    Args:
        target: the gateway and the key.
        headers: headers of every request, in addition to the key.
        connections: maximum number of concurrent requests.
        timeout_s: seconds without a byte after which a request fails; None for no limit, because a cold start or a long
            prompt is silent for minutes and the gateway enforces its own deadlines.
    """

    def __init__(
        self,
        target: GatewayTarget,
        *,
        headers: Mapping[str, str] | None = None,
        connections: int = 100,
        timeout_s: float | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=target.url,
            headers=dict(headers or {}) | target.headers,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=tls_verify(target.url),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """Return the JSON document of a GET request.

        Raises:
            ErrorResponse: the status is 400 or above.
            UpstreamFailed: the gateway is unreachable.
            UpstreamTimeout: it did not respond in time.
        """
        return await self._request("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON document of a POST request; for the errors see `get`."""
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error
        if response.status_code >= 400:
            raise ErrorResponse(response.status_code, response.content, f"{method} {path}")
        return parse_json(response.content)

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[EventStream]:
        """Open the event stream that a POST request returns; for the errors see `get`."""
        sent_at = time.perf_counter()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code >= 400:
                    content = await response.aread()
                    raise ErrorResponse(response.status_code, content, f"POST {path}")
                yield EventStream(response, sent_at)
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error

    def _transport_error(self, error: httpx.HTTPError) -> CortexError:
        url = str(self._http.base_url).rstrip("/")
        if isinstance(error, httpx.TimeoutException) and not isinstance(
            error, httpx.ConnectTimeout
        ):
            return UpstreamTimeout(f"the gateway at {url} did not respond in time")
        unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        problem = "can't be reached" if unreachable else "closed the connection"
        return UpstreamFailed(
            f"the gateway at {url} {problem}: {describe_http_error(error)}",
            details={"unreachable": unreachable},
        )


def parse_json(data: bytes) -> Any:
    """Return the JSON value, or the text if it is not JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
