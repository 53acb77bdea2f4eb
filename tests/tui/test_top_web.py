from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_fleet import busy_fleet

aiohttp = pytest.importorskip("aiohttp", reason="textual-serve is not installed")
pytest.importorskip("textual_serve", reason="textual-serve is not installed")

from chromium import browser  # noqa: E402 - as below

from cortex_cli.tui.web import password  # noqa: E402 - only where textual-serve is
from cortex_common.schema.fleet import SNAPSHOT  # noqa: E402 - as above


@given(st.text(), st.text())
def test_the_password_is_read_from_the_header(user: str, secret: str):
    """The password is the part after the first colon, for any user name."""
    user = user.replace(":", "")
    with suppress(UnicodeEncodeError):
        header = "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()
        assert password(header) == secret.encode()


@pytest.mark.parametrize("header", ["", "Bearer abc", "Basic", "Basic !!!", "Basic YWJj"])
def test_a_header_without_a_password_has_none(header: str):
    """A missing header, another scheme, or invalid base64 gives an empty password."""
    assert password(header) == b""


@dataclass(frozen=True)
class Page:
    """A served page and its process."""

    url: str
    process: psutil.Popen


@contextmanager
def page(tmp_path: Path, key: str | None) -> Iterator[Page]:
    """Serve a recorded fleet to browsers."""
    recording = tmp_path / "session.jsonl"
    recording.write_text(SNAPSHOT.dump_json(busy_fleet()).decode() + "\n")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    environ |= {"CORTEX_API_KEY": key} if key else {}
    arguments = ["top", "--web", "--port", str(port), "--replay", str(recording)]
    with psutil.Popen(
        [sys.executable, "-m", "cortex_cli", *arguments],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Page(f"http://127.0.0.1:{port}", process)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


async def get(url: str, secret: str | None = None) -> tuple[int, str]:
    """Send a GET request once the server listens, with a password if one is given."""
    basic = base64.b64encode(f"any:{secret}".encode()).decode()
    headers = {"authorization": f"Basic {basic}"} if secret else {}
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        while True:
            try:
                async with http.get(url, headers=headers) as answer:
                    return answer.status, await answer.text()
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)


async def test_the_page_draws_the_fleet(tmp_path: Path):
    """The page loads, and its WebSocket sends the screen."""
    with page(tmp_path, None) as served:
        url = served.url
        status, text = await get(url)
        assert status == 200
        assert "cortex top" in text
        drawn = b""
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{url}/ws?width=120&height=36") as ws,
            asyncio.timeout(30),
        ):
            async for message in ws:
                if message.type is aiohttp.WSMsgType.BINARY:
                    drawn += message.data
                if b"Qwen/Qwen3-32B" in drawn:
                    break
            await ws.send_str(json.dumps(["stdin", "q"]))

    assert b"Qwen/Qwen3-32B" in drawn


async def test_the_page_requires_the_operator_key(tmp_path: Path):
    """With a key, page and WebSocket require it as password."""
    with page(tmp_path, "the-operator-key") as served:
        url = served.url
        assert (await get(url))[0] == 401
        assert (await get(f"{url}/ws"))[0] == 401
        assert (await get(url, "wrong"))[0] == 401
        assert (await get(url, "the-operator-key"))[0] == 200


async def test_the_app_of_a_visitor_stops(tmp_path: Path):
    """The app of a visitor stops when the visitor leaves, even if it was still starting."""
    with page(tmp_path, None) as served:
        await get(served.url)
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(f"{served.url}/ws?width=80&height=24"):
                async with asyncio.timeout(30):
                    while not served.process.children(recursive=True):
                        await asyncio.sleep(0.02)
            async with asyncio.timeout(60):
                while served.process.children(recursive=True):
                    await asyncio.sleep(0.1)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
async def test_a_browser_shows_the_fleet_behind_the_key(tmp_path: Path):
    """A real browser with the key shows the fleet."""
    with page(tmp_path, "the-operator-key") as served:
        await get(served.url)
        where = served.url.replace("//", "//any:the-operator-key@")
        async with browser(tmp_path) as tab:
            await tab.ask("Network.enable")
            await tab.ask("Page.navigate", url=where)
            await tab.until_received(b"Qwen/Qwen3-32B")
            await tab.until_true("document.body.classList.contains('-first-byte')")
            screenshot = await tab.screenshot()
        (tmp_path / "page.png").write_bytes(screenshot)

    assert len(screenshot) > 30_000, "the splash alone is half of that"


def test_other_hosts_require_a_key():
    """Serving other hosts requires a key, because they could unload models."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, "-m", "cortex_cli", "top", "--web", "--host", "0.0.0.0"],
        env=environ | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "requires an operator key" in done.stderr
