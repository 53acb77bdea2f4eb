"""A headless Chromium, driven by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--remote-debugging-port=0", "--window-size=1600,900",
)  # fmt: skip


class Tab:
    """One page.

    Attributes:
        received: what came over its websockets.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.received = bytearray()
        self._socket = socket
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found

    async def until_received(self, words: bytes) -> None:
        """Wait until a WebSocket has received these bytes."""
        async with asyncio.timeout(90):
            while words not in self.received:
                await self._next()

    async def until_true(self, script: str) -> None:
        """Wait until a JavaScript expression is true in the page."""
        async with asyncio.timeout(30):
            while not (await self.ask("Runtime.evaluate", expression=script))["result"]["value"]:
                await asyncio.sleep(0.1)

    async def screenshot(self) -> bytes:
        """Return a screenshot as PNG, after the page has had time to paint."""
        await self.ask(
            "Runtime.evaluate",
            expression="new Promise(done => setTimeout(done, 1000))",
            awaitPromise=True,
        )
        return base64.b64decode((await self.ask("Page.captureScreenshot"))["data"])

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self._socket.receive()).data)
        if message.get("method") == "Network.webSocketFrameReceived":
            frame = message["params"]["response"]
            data = frame["payloadData"]
            self.received += base64.b64decode(data) if frame["opcode"] == 2 else data.encode()
        return message


@contextlib.asynccontextmanager
async def browser(folder: Path, *arguments: str) -> AsyncIterator[Tab]:
    """Open a tab of a browser whose profile is in a directory.

    Args:
        folder: parent of the profile's directory.
        arguments: further arguments of Chromium.
    """
    model_config = folder / "chromium"
    with subprocess.Popen(  # noqa: ASYNC220 - started once, waited for at the end
        ["chromium", *_ARGUMENTS, *arguments, f"--user-data-dir={model_config}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            chosen = model_config / "DevToolsActivePort"
            async with asyncio.timeout(60):
                while not chosen.exists() or "\n" not in chosen.read_text():
                    await asyncio.sleep(0.1)
            port = chosen.read_text().split()[0]
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = [t for t in await answer.json() if t["type"] == "page"]
                async with http.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as ws:
                    yield Tab(ws)
        finally:
            process.terminate()
            process.wait(30)
