"""Sends a probe's requests, and takes their answers apart."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

import httpx

from cortex_cli.client import Target
from cortex_cli.doctor.probe import Broken, Event
from cortex_common.client.control import describe_http_error, tls_verify
from cortex_common.errors import UpstreamFailed


class Refused(Broken):
    """The gateway or the engine answered with an error.

    Attributes:
        status: of HTTP.
        body: of the answer, as JSON; None where it is none.
    """

    def __init__(self, status: int, body: Any) -> None:
        error = body.get("error") if isinstance(body, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        super().__init__(f"{status}: {said or 'no reason'}")
        self.status = status
        self.body = body


class Asker:
    """A connection to the gateway, as a client would have one.

    Args:
        where: the gateway and the key.
        headers: of every request, beside the key.

    Attributes:
        longest_silence_s: between two pieces of the latest stream, its start included.
    """

    def __init__(self, where: Target, headers: dict[str, str]) -> None:
        credential = {"authorization": f"Bearer {where.key}"} if where.key else {}
        self.longest_silence_s = 0.0
        self._http = httpx.AsyncClient(
            base_url=where.url,
            headers=headers | credential,
            # A cold start or a long prompt is silent for minutes; the gateway has the deadlines.
            timeout=httpx.Timeout(None, connect=5.0),
            verify=tls_verify(where.url),
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
        """A document. Raises: as `post`."""
        return await self._document("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request.

        Raises:
            Refused: it is an error.
            Broken: it is no JSON.
            UpstreamFailed: the gateway can't be reached.
        """
        return await self._document("POST", path, body)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """The events of a stream, comments left out. Raises: as `post`."""
        heard = time.perf_counter()
        self.longest_silence_s = 0.0
        try:
            async with self._http.stream("POST", path, json=body) as answer:
                if answer.status_code >= 400:
                    raise Refused(answer.status_code, _json(await answer.aread()))
                name, data = "message", ""
                async for line in answer.aiter_lines():
                    now = time.perf_counter()
                    self.longest_silence_s = max(self.longest_silence_s, now - heard)
                    heard = now
                    if line.startswith("event:"):
                        name = line[6:].strip()
                    elif line.startswith("data:"):
                        data += line[5:].strip()
                    elif not line and data:
                        yield Event(name, _json(data.encode()))
                        name, data = "message", ""
        except httpx.HTTPError as failed:
            raise _unreachable(self._http, failed) from failed

    async def _document(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as failed:
            raise _unreachable(self._http, failed) from failed
        if answer.status_code >= 400:
            raise Refused(answer.status_code, _json(answer.content))
        return _json(answer.content)


def _json(data: bytes) -> Any:
    """JSON, or the text where it is none."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _unreachable(http: httpx.AsyncClient, failed: httpx.HTTPError) -> UpstreamFailed:
    reason = describe_http_error(failed)
    return UpstreamFailed(
        f"the gateway at {http.base_url} can't be reached: {reason}",
        details={"unreachable": isinstance(failed, httpx.ConnectError)},
    )
