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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
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

from cortex_cli.tui.web import bounded_size  # noqa: E402 - as above
from cortex_cli.tui.web_access import password  # noqa: E402 - only where textual-serve is
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

    def token_url(self) -> str:
        """Return the next URL that it prints, under its loopback address."""
        printed = self.process.stdout.readline()
        return f"{self.url}/{printed.rpartition('/')[2].strip()}"


@contextmanager
def page(tmp_path: Path, key: str | None, *options: str) -> Iterator[Page]:
    """Serve a recorded fleet to browsers."""
    recording = tmp_path / "session.jsonl"
    recording.write_text(SNAPSHOT.dump_json(busy_fleet()).decode() + "\n")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    environ |= {"CORTEX_API_KEY": key} if key else {}
    arguments = ["top", "--web", "--port", str(port), "--replay", str(recording), *options]
    with psutil.Popen(
        [sys.executable, "-m", "cortex_cli", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Page(f"http://127.0.0.1:{port}", process)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


@asynccontextmanager
async def visitor() -> AsyncIterator[aiohttp.ClientSession]:
    """Create a client that keeps cookies, as a browser does."""
    jar = aiohttp.CookieJar(unsafe=True)  # for IP addresses, too
    async with aiohttp.ClientSession(cookie_jar=jar) as http, asyncio.timeout(60):
        yield http


async def get(
    http: aiohttp.ClientSession, url: str, secret: str | None = None, **headers: str
) -> tuple[int, str]:
    """Send a GET request once the server listens, with a password if one is given."""
    basic = base64.b64encode(f"any:{secret}".encode()).decode()
    headers |= {"authorization": f"Basic {basic}"} if secret else {}
    while True:
        try:
            async with http.get(url, headers=headers) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)


async def test_the_printed_url_opens_the_page_for_one_browser(tmp_path: Path):
    """Its token is valid once; then the browser is known by a cookie, and a URL for another one is printed."""
    with page(tmp_path, None) as served:
        first = served.token_url()
        async with visitor() as http:
            assert (await get(http, served.url))[0] == 401
            status, text = await get(http, first)
            assert (status, "cortex top" in text) == (200, True)
            assert "https://" not in text
            assert (await get(http, served.url))[0] == 200
            drawn = b""
            async with http.ws_connect(f"{served.url}/ws?width=99999&height=99999") as ws:
                async for message in ws:
                    if message.type is aiohttp.WSMsgType.BINARY:
                        drawn += message.data
                    if b"Qwen/Qwen3-32B" in drawn:
                        break
                await ws.send_str(json.dumps(["stdin", "q"]))
        async with visitor() as other:
            assert (await get(other, first))[0] == 401
            assert (await get(other, served.token_url()))[0] == 200


async def test_the_operator_key_is_a_password(tmp_path: Path):
    """With a key, page and WebSocket accept it as password, and nothing else."""
    with page(tmp_path, "the-operator-key") as served:
        async with visitor() as http:
            assert (await get(http, served.url))[0] == 401
            assert (await get(http, f"{served.url}/ws"))[0] == 401
            assert (await get(http, served.url, "wrong"))[0] == 401
            assert (await get(http, served.url, "the-operator-key"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_other_pages_are_rejected_even_in_a_known_browser(
    tmp_path: Path, headers: dict[str, str]
):
    """A browser sends its cookie with the requests of every page of this host."""
    with page(tmp_path, None) as served:
        async with visitor() as http:
            await get(http, served.token_url())
            assert (await get(http, f"{served.url}/ws", **headers))[0] == 403


async def test_behind_a_proxy_the_page_has_the_address_of_the_proxy(tmp_path: Path):
    """The page connects to the public URL, and requests of its origin are accepted."""
    with page(tmp_path, None, "--public-url", "https://top.example.org") as served:
        async with visitor() as http:
            url = served.token_url()
            assert (await get(http, url, origin="https://top.example"))[0] == 403
            async with http.get(url, allow_redirects=False) as answer:
                assert (answer.status, answer.headers["location"]) == (303, "?")
                cookie = answer.headers["set-cookie"]
            assert "Secure" in cookie
            headers = {
                "cookie": cookie.partition(";")[0],
                "origin": "https://top.example.org",
                "host": "top.example.org",
            }
            status, text = await get(http, served.url, **headers)
            assert status == 200
            assert "wss://top.example.org/ws" in text


async def test_the_app_of_a_visitor_stops(tmp_path: Path):
    """The app of a visitor stops when the visitor leaves, even if it was still starting."""
    with page(tmp_path, "key") as served:
        headers = {"authorization": "Basic " + base64.b64encode(b"x:key").decode()}
        async with visitor() as http:
            await get(http, served.url)
            async with http.ws_connect(f"{served.url}/ws?width=80&height=24", headers=headers):
                while not served.process.children(recursive=True):
                    await asyncio.sleep(0.02)
            while served.process.children(recursive=True):
                await asyncio.sleep(0.1)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
async def test_a_browser_shows_the_fleet(tmp_path: Path):
    """A real browser that opens the printed URL shows the fleet."""
    with page(tmp_path, None) as served:
        url = await asyncio.to_thread(served.token_url)
        async with visitor() as http:
            await get(http, served.url)
        async with browser(tmp_path) as tab:
            await tab.ask("Network.enable")
            await tab.ask("Page.navigate", url=url)
            await tab.until_received(b"Qwen/Qwen3-32B")
            await tab.until_true("document.body.classList.contains('-first-byte')")
            picture = await tab.screenshot()
        (tmp_path / "page.png").write_bytes(picture)

    assert len(picture) > 30_000, "the splash alone is half of that"


def test_the_size_of_a_visitors_terminal_is_bounded():
    """A browser can claim any size, and memory grows with the cells."""
    assert bounded_size(99999, 10**9) == (640, 240)
    assert bounded_size(0, -5) == (1, 1)
    with pytest.raises((TypeError, ValueError)):
        bounded_size(None, 3)
