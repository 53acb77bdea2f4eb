"""Access of the screen to the operator API, behind a protocol so that tests can replace it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, TypeVar

from pydantic import BaseModel
from typing_extensions import override

from cortex_cli.client import connect
from cortex_cli.logs import log_text
from cortex_common.schema.operation import Operation
from cortex_common.schema.requests import RequestList

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")

_LOG_LINES = 1000


class Operator(Protocol):
    """The part of the operator API that keys and commands of the screen use."""

    async def run(self, operation: Operation[Request, Response], request: Request) -> Response:
        """Call an operation; see `OperatorClient.run`."""
        ...

    async def requests(self, limit: int | None) -> RequestList:
        """Return the requests in flight and the most recent finished ones, at most `limit` of these."""
        ...

    def log(self, name: str) -> AsyncGenerator[str]:
        """Stream the log of the gateway, a node or a model's engine; for the names see `log_source`."""
        ...


class GatewayOperator(Operator):
    """Operator API of a gateway, with one connection per call, so that a broken one affects no other call.

    Args:
        gateway: URL or context; see `client.target`.
    """

    def __init__(self, gateway: str | None) -> None:
        self._gateway = gateway

    @override
    async def run(self, operation: Operation[Request, Response], request: Request) -> Response:
        async with connect(self._gateway) as client:
            return await client.run(operation, request)

    @override
    async def requests(self, limit: int | None) -> RequestList:
        async with connect(self._gateway) as client:
            return await client.requests(limit)

    @override
    async def log(self, name: str) -> AsyncGenerator[str]:
        async with (
            connect(self._gateway) as client,
            aclosing(log_text(client, name, lines=_LOG_LINES)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk
