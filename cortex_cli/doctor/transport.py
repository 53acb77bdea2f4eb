"""Sends the requests of probes and returns their responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self

from cortex_cli.client import GatewayTarget
from cortex_cli.doctor.probe import InvalidResponse, StreamEvent
from cortex_cli.http import ErrorResponse, EventStream, GatewayHttp, parse_json


class RequestRejected(InvalidResponse):
    """The gateway or the engine responded with an error.

    Attributes:
        status: HTTP status.
        body: JSON value of the body, or its text if it is not JSON.
    """

    def __init__(self, response: ErrorResponse) -> None:
        body = parse_json(response.body)
        error = body.get("error") if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        super().__init__(f"{response.status}: {message or 'no reason'}")
        self.status = response.status
        self.body = body


class ProbeTransport:
    """A connection to the gateway, as a client would use it.

    Args:
        target: the gateway and the key.
        headers: headers of every request, in addition to the key.
    """

    def __init__(self, target: GatewayTarget, headers: Mapping[str, str]) -> None:
        self._http = GatewayHttp(target, headers=headers)
        self._stream: EventStream | None = None

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc, traceback)

    @property
    def longest_silence_s(self) -> float:
        """Longest time in seconds without a byte in the latest stream, including the time to its start."""
        return self._stream.longest_silence_s if self._stream is not None else 0.0

    async def get(self, path: str) -> Any:
        """Return a document; for the errors see `post`."""
        try:
            return await self._http.get(path)
        except ErrorResponse as response:
            raise RequestRejected(response) from response

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the response to a request.

        Raises:
            RequestRejected: it is an error.
            UpstreamFailed: the gateway is unreachable.
        """
        try:
            return await self._http.post(path, body)
        except ErrorResponse as response:
            raise RequestRejected(response) from response

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of a streamed response, without comments; for the errors see `post`."""
        try:
            async with self._http.stream(path, body) as stream:
                self._stream = stream
                async for event in stream:
                    yield StreamEvent(event.name, parse_json(event.data))
        except ErrorResponse as response:
            raise RequestRejected(response) from response
