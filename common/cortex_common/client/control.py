"""The base of the clients of the control APIs: typed responses, errors as classes, event streams."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from cortex_common.client.bounded_body import UNCOMPRESSED, read_body, require_uncompressed
from cortex_common.errors import ConfigError, UpstreamFailed, UpstreamTimeout, from_envelope
from cortex_common.sse import EventTooLong, SseParser

T = TypeVar("T")

_MAX_ID_LENGTH = 64

_TRANSFER_S = 30.0
"""Seconds, after the timeout of a call, in which a started response must end."""

_CONNECTION_ERRORS = {
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}


def tls_verify(url: str) -> ssl.SSLContext | bool:
    """Return httpx's `verify` argument for a server: the default authorities, or those in SSL_CERT_FILE.

    Raises:
        ConfigError: that file can't be read.
    """
    return _default_tls_context() if url.startswith("https:") else False


@cache
def _default_tls_context() -> ssl.SSLContext:
    """Create httpx's default context, once for all clients: reading all authorities takes 20 ms."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        location = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ConfigError(
            f"certificate authorities can't be read from {location}: {error}"
        ) from error


def describe_http_error(error: httpx.HTTPError) -> str:
    """Return why a request failed, for people, including for timeouts, which have no message of their own."""
    is_timeout = isinstance(error, httpx.TimeoutException)
    if isinstance(error, httpx.ConnectError) and (number := _connection_errno(error)) is not None:
        return os.strerror(number)
    return str(error) or ("timed out" if is_timeout else type(error).__name__)


def _connection_errno(error: BaseException | None) -> int | None:
    """Return the system's error behind the "All connection attempts failed" of httpx and anyio."""
    while error is not None:
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno in _CONNECTION_ERRORS:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def quote_path(name: str) -> str:
    """Quote a name for the path of a URL; slashes are kept.

    Segments "." and ".." are escaped, because httpx would otherwise remove them:
    https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4.
    """
    segments = name.split("/")
    return "/".join(s.replace(".", "%2E") if s in {".", ".."} else quote(s) for s in segments)


@dataclass(slots=True)
class EventCursor:
    """The position in an event stream from which a new connection continues."""

    last_id: str | None = None

    def advance(self, event_id: str) -> None:
        """Take the id of an event; one that can't be sent back in a header is ignored."""
        if (
            event_id
            and event_id.isascii()
            and event_id.isprintable()
            and len(event_id) <= _MAX_ID_LENGTH
        ):
            self.last_id = event_id


class ControlClient:
    """An HTTP client for one gateway or neuron.

    Args:
        base_url: without a trailing slash.
        who: what to call the server in errors, such as "node beast".
        token: bearer token, if the server requires one.
        tls: authorities and client certificate; None for the defaults.
        transport: for tests that run the server in the same process.
    """

    def __init__(
        self,
        base_url: str,
        *,
        who: str,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self.who = who
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=UNCOMPRESSED | ({"authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx.Timeout(10.0, connect=5.0),
            transport=transport,
            verify=tls or tls_verify(base_url),
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
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def call(
        self,
        response_type: TypeAdapter[T],
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 - httpx applies it to each phase of the call
    ) -> T:
        """Send a request and parse the response.

        Raises:
            CortexError: the error that the server reported, as the class of its code.
            UpstreamTimeout: the server did not respond in time.
            UpstreamFailed: the server can't be reached, or its response can't be parsed.
        """
        call = f"{method} {path}"
        try:
            async with (
                asyncio.timeout(timeout + _TRANSFER_S),
                self._http.stream(
                    method, path, json=body, params=params, timeout=timeout
                ) as response,
            ):
                content = await read_body(response)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise UpstreamTimeout(
                f"{self.who} at {self.base_url} did not respond to {call} in time"
            ) from error
        except httpx.HTTPError as error:
            raise UpstreamFailed(
                f"{self.who} at {self.base_url} can't be reached: {describe_http_error(error)}",
                details={"unreachable": True},
            ) from error
        if response.status_code >= 400:
            raise from_envelope(content, response.status_code, call)
        return self.parse(response_type, content, f"an unexpected response to {call}")

    def parse(self, expected: TypeAdapter[T], content: bytes, what: str) -> T:
        """Parse JSON that the server sent.

        Args:
            expected: what it has to be.
            content: the JSON.
            what: what to call it in the error.

        Raises:
            UpstreamFailed: it is not what is expected.
        """
        try:
            return expected.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            problem = f"{where}: {first['msg']}" if where else first["msg"]
            raise UpstreamFailed(f"{self.who} sent {what}: {problem[:500]}") from error

    @asynccontextmanager
    async def text(self, path: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[str]]:
        """Stream a text response chunk by chunk; it can be endless.

        Raises:
            CortexError: the error that the server reported, as the class of its code.
            UpstreamFailed: the server can't be reached, or closed the connection.
        """
        timeout = httpx.Timeout(None, connect=5.0)
        try:
            async with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if response.status_code >= 400:
                    content = await read_body(response)
                    raise from_envelope(content, response.status_code, f"GET {path}")
                require_uncompressed(response)
                yield response.aiter_text()
        except httpx.HTTPError as error:
            raise self._stream_error(error) from error

    async def events(
        self, path: str, *, silence_s: float, cursor: EventCursor | None = None
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Follow a server-sent event stream as (event name, data).

        Args:
            path: path of the stream.
            silence_s: seconds without a byte, comments included, after which the connection is considered dead.
            cursor: where an earlier connection ended; updated with every event.

        Raises:
            UpstreamFailed: the stream can't be opened, was closed, is silent for too long, or holds no events.
        """
        timeout = httpx.Timeout(silence_s, connect=5.0)
        cursor = cursor or EventCursor()
        headers = {"last-event-id": cursor.last_id} if cursor.last_id else {}
        try:
            async with self._http.stream("GET", path, timeout=timeout, headers=headers) as response:
                await self._check_events(response)
                parser = SseParser()
                async for data in response.aiter_bytes():
                    for event in parser.feed(data):
                        cursor.advance(event.id)
                        yield event.name or "message", event.data
        except EventTooLong as error:
            raise UpstreamFailed(f"{self.who} at {self.base_url}: {error}") from error
        except httpx.HTTPError as error:
            raise self._stream_error(error) from error

    async def _check_events(self, response: httpx.Response) -> None:
        """Reject a response that is not a stream of events."""
        if response.status_code >= 400:
            call = f"GET {response.url.path}"
            raise from_envelope(await read_body(response), response.status_code, call)
        require_uncompressed(response)
        content_type = response.headers.get("content-type", "nothing")
        if not content_type.startswith("text/event-stream"):
            raise UpstreamFailed(
                f"{self.who} at {self.base_url} sent {content_type[:80]} instead of events; "
                "is another program listening there?"
            )

    def _stream_error(self, error: httpx.HTTPError) -> UpstreamFailed:
        """Return the error for a stream that can't be opened, or ended early."""
        reason = describe_http_error(error)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return UpstreamFailed(f"{self.who} at {self.base_url} can't be reached: {reason}")
        return UpstreamFailed(f"{self.who} at {self.base_url} closed the connection: {reason}")
