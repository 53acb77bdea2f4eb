"""Web pages whose scripts use the API from a browser."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError
from rigs.engine import STREAM, Call, chunked, scripted_engine
from rigs.proxy import running_proxy

from cortex_common.config.gateway import GatewaySection
from cortex_server.auth.access_control import AccessControl

CHAT = "/v1/chat/completions"
BODY = {
    "model": "m",
    "messages": [],
    "stream": True,
    "stream_options": {"include_usage": True},
}
PAGE = "https://chat.example.org"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize("allowed", [PAGE, "*"])
async def test_a_page_that_may_reads_answers_listings_and_errors(allowed):
    """The browser is told so once, whatever the engine says of its own pages."""

    async def answer(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"access-control-allow-origin: https://other.example.org\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await call.send(chunked(STREAM) + b"0\r\n\r\n")

    settings = GatewaySection(allowed_origins=(allowed,))
    everybody = AccessControl(insecure=True)
    async with (
        scripted_engine(answer) as engine,
        running_proxy({"m": engine.url}, settings=settings, access_control=everybody) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"origin": PAGE}) as page,
    ):
        asked = await page.options(CHAT, headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        got = await page.post(CHAT, json=BODY)
        assert got.content == STREAM
        unknown = await page.post(CHAT, json=BODY | {"model": "x"})
        assert unknown.status_code == 404
        for told in (asked, got, unknown, await page.get("/v1/models")):
            assert told.headers.get_list("access-control-allow-origin") == [allowed]
        assert got.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize("allowed", [(), ("https://else.example.org",)])
async def test_other_pages_read_nothing(allowed):
    """A page from elsewhere is not told that it may; keyless use by this host is not for it either."""
    settings = GatewaySection(allowed_origins=allowed)
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"origin": PAGE}) as page,
    ):
        asked = await page.options(CHAT, headers=ASKS)
        assert asked.status_code >= 400
        got = await page.post(CHAT, json=BODY)
        assert got.status_code == 401
        for told in (asked, got):
            assert "access-control-allow-origin" not in told.headers


async def test_origins_that_change_count_from_then_on():
    """A reload of the settings is enough for pages."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as page,
    ):
        assert (await page.options(CHAT, headers=ASKS)).status_code == 401
        rig.context.use(GatewaySection(allowed_origins=(PAGE,)), rig.context.limits)
        assert (await page.options(CHAT, headers=ASKS)).status_code == 200


def test_an_origin_is_taken_as_browsers_name_it():
    """They leave out a scheme's own port, and know no patterns, so that such would never fit."""
    taken = GatewaySection(allowed_origins=("HTTPS://Chat.example.org:443/", "http://x:80", "*"))
    assert taken.allowed_origins == ("https://chat.example.org", "http://x", "*")
    for never in ("https://*.example.org", "chat.example.org", "https://x/page", "null"):
        with pytest.raises(ValidationError, match="is not an origin"):
            GatewaySection(allowed_origins=(never,))
