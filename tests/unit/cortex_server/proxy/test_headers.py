"""What clients get of an engine's response head."""

from __future__ import annotations

import pytest

from cortex_server.proxy.headers import client_headers, client_status


@pytest.mark.parametrize(
    "name",
    [
        b"alt-svc",
        b"clear-site-data",
        b"content-security-policy",
        b"content-length",
        b"location",
        b"public-key-pins",
        b"refresh",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"transfer-encoding",
        b"www-authenticate",
        b"x-cortex-instance",
        b"x-cortex-node",
        b"x-request-id",
    ],
)
def test_a_header_that_acts_on_the_client_or_poses_as_the_gateway_is_not_forwarded(name):
    """Only headers of the allow-list pass."""
    assert client_headers([(name, b"v")]) == []


def test_headers_that_sdks_offer_to_programs_are_forwarded():
    """Content type, retry advice, and rate limits of an external upstream."""
    headers = [
        (b"content-type", b"application/json"),
        (b"retry-after", b"3"),
        (b"x-ratelimit-remaining-requests", b"9"),
        (b"openai-processing-ms", b"12"),
    ]
    assert client_headers(headers) == headers


@pytest.mark.parametrize(
    ("engine", "client"),
    [
        (200, 200),
        (299, 200),
        (400, 400),
        (404, 404),
        (407, 502),
        (426, 502),
        (429, 429),
        (499, 400),
        (503, 503),
        (511, 502),
        (529, 529),
        (599, 502),
        (600, 502),
        (999, 502),
        (99, 502),
    ],
)
def test_an_unknown_status_becomes_a_known_one_of_its_class(engine, client):
    """A status without a meaning for the client is mapped."""
    assert client_status(engine) == client
