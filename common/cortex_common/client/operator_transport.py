"""The HTTP transport to the operator socket of a gateway on this host, on which some users need no key."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from typing_extensions import override

from cortex_common.client.control import tls_verify
from cortex_common.net.runtime_dir import operator_sockets, port_on_this_host


def operator_transport(gateway: str) -> httpx.AsyncBaseTransport | None:
    """Return the transport for a gateway on this host; None for one on another host.

    Args:
        gateway: base URL of the gateway.
    """
    port = port_on_this_host(gateway)
    return None if port is None else _OperatorTransport(gateway, port)


class _OperatorTransport(httpx.AsyncBaseTransport):
    """Sends each request over a socket that accepts connections, else to the gateway's address.

    The sockets are looked up for every request, because they change when gateways restart.
    """

    def __init__(self, gateway: str, port: int) -> None:
        self._port = port
        self._tcp = httpx.AsyncHTTPTransport(verify=tls_verify(gateway), trust_env=False)
        self._sockets: dict[Path, httpx.AsyncHTTPTransport] = {}

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for path in operator_sockets(self._port, os.environ):
            transport = self._sockets.get(path)
            if transport is None:
                transport = self._sockets[path] = httpx.AsyncHTTPTransport(uds=str(path))
            try:
                return await transport.handle_async_request(_without_tls(request))
            except (
                httpx.ConnectError
            ):  # left behind by a gateway that was killed, or of another user
                continue
        return await self._tcp.handle_async_request(request)

    @override
    async def aclose(self) -> None:
        for transport in (self._tcp, *self._sockets.values()):
            await transport.aclose()


def _without_tls(request: httpx.Request) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(scheme="http"),
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )
