"""One way to call a neuron's or a gateway's control API: typed answers, errors from the tree."""

from __future__ import annotations

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

from cortex_common.errors import ConfigError, UpstreamFailed, UpstreamTimeout, from_envelope

T = TypeVar("T")


_NO_CONNECTION = {
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}


def tls_for(url: str) -> ssl.SSLContext | bool:
    """What httpx takes as `verify` for a server: the well-known authorities, or those that SSL_CERT_FILE names.

    Raises:
        ConfigError: that file can't be used.
    """
    return _system_tls() if url.startswith("https:") else False


@cache
def _system_tls() -> ssl.SSLContext:
    """As httpx makes it for each client; once is enough, as reading all authorities takes 20 ms."""
    try:
        return httpx.create_ssl_context()
    except OSError as failed:
        named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ConfigError(f"no authorities can be read from {named}: {failed}") from failed


def in_words(failed: httpx.HTTPError) -> str:
    """Why a request failed, for people; timeouts have no words of their own."""
    silent = isinstance(failed, httpx.TimeoutException)
    if isinstance(failed, httpx.ConnectError) and (number := _errno(failed)) is not None:
        return os.strerror(number)
    return str(failed) or ("it timed out" if silent else type(failed).__name__)


def _errno(failed: BaseException | None) -> int | None:
    """The system's word on a connection, below what httpx and anyio make of it: "All connection attempts failed"."""
    while failed is not None:
        if isinstance(failed, ExceptionGroup):
            failed = failed.exceptions[0]
        if isinstance(failed, OSError) and failed.errno in _NO_CONNECTION:
            return failed.errno
        failed = failed.__cause__ or failed.__context__
    return None


def in_path(name: str) -> str:
    """A name as part of a URL's path; its slashes stay.

    ".." between them is escaped, or httpx would take it and what is before it away:
    https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4.
    """
    segments = name.split("/")
    return "/".join(s.replace(".", "%2E") if s in {".", ".."} else quote(s) for s in segments)


@dataclass(slots=True)
class Bookmark:
    """How far an event stream has been read, so that a new connection goes on there."""

    last_id: str | None = None


class ControlClient:
    """A base URL and the httpx client behind it.

    Args:
        base_url: without a slash at its end.
        who: what to call the other side in errors, such as "node beast".
        token: bearer token, where the other side asks for one.
        tls: with which authorities and certificate to ask; None for the system's.
        transport: for tests that run the server in this process.
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
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(10.0, connect=5.0),
            transport=transport,
            verify=tls or tls_for(base_url),
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
        answer: TypeAdapter[T],
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 - httpx applies it to each phase of the call
    ) -> T:
        """Send a request and parse its answer.

        Raises:
            CortexError: the one that the other side reported, by its code.
            UpstreamTimeout: no answer in time.
            UpstreamFailed: the other side can't be reached or answered something else.
        """
        what = f"{method} {path}"
        try:
            response = await self._http.request(
                method, path, json=body, params=params, timeout=timeout
            )
        except httpx.TimeoutException as failed:
            raise UpstreamTimeout(
                f"{self.who} at {self.base_url} did not answer {what} in time"
            ) from failed
        except httpx.HTTPError as failed:
            reason = in_words(failed)
            raise UpstreamFailed(
                f"{self.who} at {self.base_url} can't be reached: {reason}",
                details={"unreachable": True},
            ) from failed
        if response.status_code >= 400:
            raise from_envelope(response.content, response.status_code, what)
        try:
            return answer.validate_json(response.content)
        except ValidationError as failed:
            raise UpstreamFailed(
                f"{self.who} answered {what} with something else: {failed.errors()[0]['msg']}"
            ) from failed

    def _broken(self, failed: httpx.HTTPError) -> UpstreamFailed:
        """Why a stream can't be had, or ended before its end."""
        reason = in_words(failed)
        if isinstance(failed, httpx.ConnectError | httpx.ConnectTimeout):
            return UpstreamFailed(f"{self.who} at {self.base_url} can't be reached: {reason}")
        return UpstreamFailed(f"{self.who} at {self.base_url} broke off: {reason}")

    @asynccontextmanager
    async def text(self, path: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[str]]:
        """A body of text, piece by piece as it comes; it may never end.

        Raises:
            CortexError: the one that the other side reported, by its code.
            UpstreamFailed: the other side can't be reached, or broke off.
        """
        timeout = httpx.Timeout(None, connect=5.0)
        try:
            async with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise from_envelope(await response.aread(), response.status_code, f"GET {path}")
                yield response.aiter_text()
        except httpx.HTTPError as failed:
            raise self._broken(failed) from failed

    async def events(
        self, path: str, *, silence_s: float, bookmark: Bookmark | None = None
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Follow a server-sent event stream as (event name, data).

        Args:
            path: of the stream.
            silence_s: seconds without a byte, comments included, after which the stream counts as dead.
            bookmark: where an earlier connection ended; kept up to date.

        Raises:
            UpstreamFailed: the stream can't be had, broke, or fell silent.
        """
        timeout = httpx.Timeout(silence_s, connect=5.0)
        mark = bookmark or Bookmark()
        headers = {"last-event-id": mark.last_id} if mark.last_id else {}
        try:
            async with self._http.stream("GET", path, timeout=timeout, headers=headers) as response:
                if response.status_code >= 400:
                    raise from_envelope(await response.aread(), response.status_code, f"GET {path}")
                name, data = "message", bytearray()
                async for line in response.aiter_lines():
                    if line.startswith("event:"):
                        name = line[6:].strip()
                    elif line.startswith("id:"):
                        mark.last_id = line[3:].strip()
                    elif line.startswith("data:"):
                        data += line[5:].lstrip().encode()
                    elif not line and data:
                        yield name, bytes(data)
                        name, data = "message", bytearray()
        except httpx.HTTPError as failed:
            raise self._broken(failed) from failed
