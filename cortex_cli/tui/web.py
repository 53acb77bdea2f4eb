"""`cortex top --web`: the app in a browser through textual-serve, protected by the operator key."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import shlex
import sys

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from textual_serve.app_service import AppService
from textual_serve.server import Server
from typing_extensions import override

from cortex_common.errors import ConfigError

_HEARTBEAT_S = 15.0
_QUIT_RETRY_S = 1.0
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class GuardedServer(Server):
    """textual-serve with HTTP basic authentication, whose password is the operator key.

    Browsers send the credentials with the WebSocket handshake too, so one prompt protects both.

    Args:
        command: shell command that starts the app of each visitor.
        host: address to listen on.
        port: port to listen on.
        key: the password; None for no authentication.
    """

    def __init__(self, command: str, host: str, port: int, key: str | None) -> None:
        super().__init__(command, host=host, port=port, title="cortex top")
        self._key = key

    @override
    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S)
        await websocket.prepare(request)

        async def close_websocket() -> None:
            await websocket.close()

        service = AppService(
            self.command,
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=close_websocket,
            download_manager=self.download_manager,
        )
        await service.start(_cells(request, "width", 80), _cells(request, "height", 24))
        try:
            await self._process_messages(websocket, service)
        finally:
            await _stop(service)
        return websocket

    @override
    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        if self._key is not None:
            app.middlewares.append(require_key(self._key))
        return app


def _cells(request: web.Request, parameter: str, default: int) -> int:
    text = request.query.get(parameter, "")
    return int(text) if text.isdecimal() else default


async def _stop(service: AppService) -> None:
    """Stop a visitor's app, repeating the request because an app that is still starting ignores it."""
    stopping = asyncio.create_task(service.stop())
    while not (await asyncio.wait({stopping}, timeout=_QUIT_RETRY_S))[0]:
        await service.send_meta({"type": "quit"})
    await stopping


def require_key(key: str) -> Middleware:
    """Return a middleware that requires the key as password of HTTP basic authentication."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hmac.compare_digest(
            password(request.headers.get("authorization", "")), key.encode()
        ):
            raise web.HTTPUnauthorized(
                text="the password is the operator key\n",
                headers={"www-authenticate": 'Basic realm="cortex", charset="UTF-8"'},
            )
        return await handler(request)

    return check


def password(header: str) -> bytes:
    """Return the password of an Authorization header (RFC 7617); empty if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def serve(host: str, port: int, arguments: list[str], key: str | None) -> None:
    """Serve `cortex top` until interrupted.

    Args:
        host: address to listen on.
        port: port to listen on.
        arguments: arguments of `cortex top` for each visitor.
        key: the operator key.

    Raises:
        ConfigError: other hosts could connect without a key.
    """
    if key is None and host not in _LOOPBACK:
        raise ConfigError(
            f"serving on {host} requires an operator key; without one, only loopback addresses are allowed",
            hints=("set CORTEX_API_KEY to the key, or CORTEX_API_KEY_FILE to its file",),
        )
    command = shlex.join([sys.executable, "-m", "cortex_cli", "top", *arguments])
    GuardedServer(command, host, port, key).serve()
