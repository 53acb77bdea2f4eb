"""`cortex top --web`: the same app in a browser, through textual-serve, behind the operator key."""

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

from cortex_common.errors import ConfigError

_HEARTBEAT_S = 15.0
_AGAIN_S = 1.0
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class GuardedServer(Server):
    """textual-serve, asking for the operator key as the password of HTTP basic authentication.

    Browsers send that with the websocket too, so the one question guards both.

    Args:
        command: the shell line that each visitor's app is started with.
        host, port: to listen on.
        key: the password; None asks for none.
    """

    def __init__(self, command: str, host: str, port: int, key: str | None) -> None:
        super().__init__(command, host=host, port=port, title="cortex top")
        self._key = key

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run an app for one visitor, and end it when the visitor leaves."""
        websocket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S)
        await websocket.prepare(request)

        async def hang_up() -> None:
            await websocket.close()

        service = AppService(
            self.command,
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=hang_up,
            download_manager=self.download_manager,
        )
        await service.start(_cells(request, "width", 80), _cells(request, "height", 24))
        try:
            await self._process_messages(websocket, service)
        finally:
            await _end(service)
        return websocket

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        if self._key is not None:
            app.middlewares.append(guard(self._key))
        return app


def _cells(request: web.Request, side: str, otherwise: int) -> int:
    text = request.query.get(side, "")
    return int(text) if text.isdecimal() else otherwise


async def _end(service: AppService) -> None:
    """End a visitor's app; while it starts it does not hear that it should, and would go on for ever."""
    stopping = asyncio.create_task(service.stop())
    while not (await asyncio.wait({stopping}, timeout=_AGAIN_S))[0]:
        await service.send_meta({"type": "quit"})
    await stopping


def guard(key: str) -> Middleware:
    """A middleware that lets in whoever gives the key as password."""

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
    """The password of an Authorization header (RFC 7617); empty when it holds none."""
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
        host: to listen on.
        port: to listen on.
        arguments: of `cortex top` for each visitor.
        key: the operator key.

    Raises:
        ConfigError: other hosts would be let in without a key.
    """
    if key is None and host not in _LOOPBACK:
        raise ConfigError(
            f"without an operator key the page is served on loopback only, not on {host}",
            hints=("put the key into CORTEX_API_KEY, or its file into CORTEX_API_KEY_FILE",),
        )
    command = shlex.join([sys.executable, "-m", "cortex_cli", "top", *arguments])
    GuardedServer(command, host, port, key).serve()
