"""`cortex top --web`: the app in a browser through textual-serve, for authenticated visitors."""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp_jinja2
from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.server import Server
from typing_extensions import override

from cortex_cli.terminal import write_out
from cortex_cli.tui.web_access import WebAccess, access_middleware

_HEARTBEAT_S = 15.0
_QUIT_RETRY_S = 1.0
_MAX_VISITORS = 8
"""Apps at the same time; each is a process of about 60 MB."""
_MAX_COLUMNS = 640
_MAX_ROWS = 240
_MAX_MESSAGE = 64 * 1024
_ANY_ADDRESS = {"0.0.0.0", "::", ""}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy: the page loads nothing from other hosts, and no other page can show it in a frame."""


class _BoundedApp(AppService):
    """The app of one visitor, with at most as many cells as a large screen has."""

    @override
    async def set_terminal_size(self, width: int, height: int) -> None:
        await super().set_terminal_size(*bounded_size(width, height))


class TerminalServer(Server):
    """textual-serve with authentication, bounds, and a page that works under every name and behind proxies.

    Args:
        command: shell command that starts the app of each visitor.
        host: address to listen on.
        port: port to listen on.
        key: operator key, if there is one.
        public_url: URL of a proxy in front of this server, without a trailing slash; None without one.
    """

    def __init__(
        self, command: str, host: str, port: int, key: str | None, public_url: str | None
    ) -> None:
        shown = socket.gethostname() if host in _ANY_ADDRESS else host
        url = public_url or f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
        super().__init__(
            command,
            host=host,
            port=port,
            title="cortex top",
            public_url=url,
            templates_path=Path(__file__).with_name("web_page"),
        )
        self._is_proxied = public_url is not None
        self._access = WebAccess(key, host, public_url)
        self._visitors = 0

    @override
    def initialize_logging(self) -> None:
        # Without the access log, which would contain tokens.
        logging.basicConfig(level="WARNING")

    @override
    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self._visitors >= _MAX_VISITORS:
            raise web.HTTPServiceUnavailable(
                text=f"{_MAX_VISITORS} browsers are connected already\n"
            )
        self._visitors += 1
        try:
            return await self._serve_visitor(request)
        finally:
            self._visitors -= 1

    async def _serve_visitor(self, request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=_MAX_MESSAGE)
        await websocket.prepare(request)

        async def close_websocket() -> None:
            await websocket.close()

        service = _BoundedApp(
            self.command,
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=close_websocket,
            download_manager=self.download_manager,
        )
        await service.start(
            *bounded_size(_cells(request, "width", 80), _cells(request, "height", 24))
        )
        try:
            await self._process_messages(websocket, service)
        finally:
            await _stop(service)
        return websocket

    @override
    async def handle_index(self, request: web.Request) -> web.Response:
        # Relative to the page, whose host can have several names. WebSockets need an absolute URL.
        size = request.query.get("fontsize", "")
        context = {
            "font_size": int(size) if size.isdecimal() and len(size) < 3 else 16,
            "app_websocket_url": f"{self._websocket_base(request)}/ws",
            "config": {"static": {"url": "static/"}},
            "application": {"name": self.title},
        }
        response = aiohttp_jinja2.render_template("app_index.html", request, context)
        response.headers["content-security-policy"] = _POLICY
        response.headers["referrer-policy"] = "no-referrer"
        return response

    def _websocket_base(self, request: web.Request) -> str:
        base = self.public_url if self._is_proxied else f"http://{request.host}"
        return "ws" + base.removeprefix("http")

    @override
    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(access_middleware(self._access))
        app.on_response_prepare.append(self._after_login)
        return app

    async def _after_login(self, request: web.Request, response: web.StreamResponse) -> None:
        """Print the URL for the next browser once one has used the last."""
        if response.status == web.HTTPSeeOther.status_code:
            self._print_url(f"opened by {request.remote}; for another browser")

    @override
    async def on_startup(self, app: web.Application) -> None:
        self._print_url("open in a browser")

    def _print_url(self, purpose: str) -> None:
        write_out(f"{purpose}: {self.public_url}/?token={self._access.issue_token()}\n")
        sys.stdout.flush()


def bounded_size(width: Any, height: Any) -> tuple[int, int]:
    """Return the columns and rows of a visitor's terminal, within bounds.

    Raises:
        ValueError: they are not numbers.
    """
    return max(1, min(int(width), _MAX_COLUMNS)), max(1, min(int(height), _MAX_ROWS))


def _cells(request: web.Request, parameter: str, default: int) -> int:
    text = request.query.get(parameter, "")
    return int(text) if text.isdecimal() and len(text) < 9 else default


async def _stop(service: AppService) -> None:
    """Stop a visitor's app, repeating the request because an app that is still starting ignores it."""
    stopping = asyncio.create_task(service.stop())
    while not (await asyncio.wait({stopping}, timeout=_QUIT_RETRY_S))[0]:
        await service.send_meta({"type": "quit"})
    await stopping


def serve(
    host: str, port: int, arguments: list[str], key: str | None, public_url: str | None
) -> None:
    """Serve `cortex top` until interrupted.

    Args:
        host: address to listen on.
        port: port to listen on.
        arguments: arguments of `cortex top` for each visitor.
        key: the operator key.
        public_url: URL of a proxy in front of this server.
    """
    command = shlex.join([sys.executable, "-m", "cortex_cli", "top", *arguments])
    TerminalServer(command, host, port, key, public_url and public_url.rstrip("/")).serve()
