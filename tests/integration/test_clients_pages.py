"""Web pages that use the API from a browser (CORS)."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError
from rigs.engine import STREAM, Call, chunked, scripted_engine
from rigs.proxy import running_proxy

from cortex_common.config.gateway import GatewaySection
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_server.auth.access_control import AccessControl

CHAT = "/v1/chat/completions"
BODY = {
    "model": "m",
    "messages": [],
    "stream": True,
    "stream_options": {"include_usage": True},
}
PAGE = "https://chat.example.org"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize("allowed", [PAGE, "*"])
async def test_allowed_origin_can_read_responses_listings_and_errors(allowed):
    """The header is sent once, whatever the engine sends about its own origins."""

    async def answer(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"access-control-allow-origin: https://other.example.org\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await call.send(chunked(STREAM) + b"0\r\n\r\n")

    settings = GatewaySection(allowed_origins=(allowed,))
    trusted = TrustedHosts("gateway", origins=frozenset({allowed}))
    open_access = AccessControl(insecure=True, trusted=trusted)
    async with (
        scripted_engine(answer) as engine,
        running_proxy({"m": engine.url}, settings=settings, access_control=open_access) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"origin": PAGE}) as page,
    ):
        preflight = await page.options(CHAT, headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        response = await page.post(CHAT, json=BODY)
        assert response.content == STREAM
        unknown = await page.post(CHAT, json=BODY | {"model": "x"})
        assert unknown.status_code == 404
        for answer in (preflight, response, unknown, await page.get("/v1/models")):
            assert answer.headers.get_list("access-control-allow-origin") == [allowed]
        assert response.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize("allowed", [(), ("https://else.example.org",)])
async def test_other_origins_cannot_read_anything(allowed):
    """A page of another origin gets no CORS headers, nor the keyless access of local clients."""
    settings = GatewaySection(allowed_origins=allowed)
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}, settings=settings) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"origin": PAGE}) as page,
    ):
        preflight = await page.options(CHAT, headers=PREFLIGHT)
        assert preflight.status_code >= 400
        response = await page.post(CHAT, json=BODY)
        assert response.status_code == 403
        for answer in (preflight, response):
            assert "access-control-allow-origin" not in answer.headers


async def test_allowed_origins_can_be_reloaded():
    """Reloaded settings apply to later requests."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as page,
    ):
        assert (await page.options(CHAT, headers=PREFLIGHT)).status_code == 403
        rig.context.use(GatewaySection(allowed_origins=(PAGE,)), rig.context.limits)
        assert (await page.options(CHAT, headers=PREFLIGHT)).status_code == 200


def test_origins_are_normalized_as_browsers_send_them():
    """Browsers omit a scheme's default port, and send no patterns, which would never match."""
    settings = GatewaySection(allowed_origins=("HTTPS://Chat.example.org:443/", "http://x:80", "*"))
    assert settings.allowed_origins == ("https://chat.example.org", "http://x", "*")
    for invalid in ("https://*.example.org", "chat.example.org", "https://x/page", "null"):
        with pytest.raises(ValidationError, match="is not an origin"):
            GatewaySection(allowed_origins=(invalid,))
