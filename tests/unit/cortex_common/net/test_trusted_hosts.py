"""Which web pages and host names a listener accepts."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import PermissionDenied
from cortex_common.net.trusted_hosts import TrustedHosts, is_this_host, own_names, trusted_hosts

TRUSTED = TrustedHosts(
    "gateway",
    frozenset({"gate", "gate.example.org", "*.lab.example.org"}),
    frozenset({"https://chat.example.org", "chrome-extension://abc"}),
)


def accepts_host(host: bytes | None) -> bool:
    """Return whether a Host header is accepted."""
    try:
        TRUSTED.check_host(host)
    except PermissionDenied:
        return False
    return True


def accepts_page(
    origin: bytes | None, site: bytes | None = None, host: bytes = b"gate:8000"
) -> bool:
    """Return whether a request of a page is accepted."""
    try:
        TRUSTED.check_page(host, origin, site)
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        None,
        b"localhost",
        b"LOCALHOST:8000",
        b"localhost.:8000",
        b"app.localhost:8000",
        b"127.0.0.1:8000",
        b"[::1]:8000",
        b"[::1]",
        b"10.0.0.7:8000",
        b"gate:8000",
        b"gate.example.org",
        b"a.lab.example.org:443",
    ],
)
def test_names_and_addresses_of_this_host_are_accepted(host: bytes | None):
    """Loopback names, configured names, and addresses, which no name server controls."""
    assert accepts_host(host)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b":8000",
        b"evil.example",
        b"127.0.0.1.evil.example",
        b"localhost.evil.example:8000",
        b"notlocalhost",
        b"printer",
        b"evil.local",
        b"0.0.0.0:8000",
        b"[::]:8000",
        b"2130706433",
        b"localhost:8000@evil.example",
        b"localhost:evil",
        b"localhost/evil",
        b"[::1",
        b"[evil.example]:80",
        b".localhost",
        b"lab.example.org",
        b"\xff\xfe",
        b"localhost\r\nx: y",
    ],
)
def test_other_names_are_rejected(host: bytes):
    """Names that a page could have been loaded from, and everything that is no host and port."""
    assert not accepts_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost:3000",
        b"http://127.0.0.1",
        b"http://[::1]:5173",
        b"https://app.localhost",
        b"http://gate:3000",
        b"https://chat.example.org",
        b"chrome-extension://abc",
    ],
)
def test_pages_of_this_host_and_configured_ones_are_accepted(origin: bytes):
    """Whatever Sec-Fetch-Site says about them."""
    assert accepts_page(origin, b"cross-site")


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"http://printer",
        b"http://evil.local",
        b"http://10.0.0.7:8000",
        b"https://evil.example",
        b"http://localhost.evil.example",
        b"chrome-extension://xyz",
        b"file://",
        b"ftp://localhost",
        b"https://chat.example.org.evil.example",
        b"https://chat.example.org:444",
        b"\xff",
    ],
)
def test_other_pages_are_rejected(origin: bytes):
    """Private-looking names, any other address, extensions and opaque origins among them."""
    assert not accepts_page(origin)


def test_a_page_that_this_listener_serves_is_accepted_under_its_address():
    """Its origin is the Host of its requests; a page whose name was bound to this host also changes Host."""
    assert accepts_page(b"http://10.0.0.7:8000", host=b"10.0.0.7:8000")
    assert not accepts_page(b"http://evil.example", host=b"evil.example")


@pytest.mark.parametrize(
    ("site", "accepted"),
    [
        (None, True),
        (b"none", True),
        (b"same-origin", True),
        (b"same-site", False),
        (b"cross-site", False),
        (b"x", False),
    ],
)
def test_requests_without_an_origin_are_judged_by_their_site(site: bytes | None, *, accepted: bool):
    """Browsers send no Origin with images and links."""
    assert accepts_page(None, site) is accepted


def test_an_asterisk_allows_every_page():
    """As in allowed_origins."""
    everything = TrustedHosts("gateway", origins=frozenset("*"))
    everything.check_page(b"x", b"https://evil.example", b"cross-site")


@given(st.binary(max_size=80))
def test_any_bytes_are_accepted_or_rejected(value: bytes):
    """Never another exception."""
    accepts_host(value)
    accepts_page(value)
    accepts_page(None, value)


def test_the_hostname_is_trusted_also_below_private_domains():
    """No one can register these domains publicly."""
    short = socket.gethostname().lower().partition(".")[0]
    assert {short, f"{short}.internal", f"{short}.local"} <= own_names()
    assert is_this_host(short.upper())
    assert is_this_host("127.0.0.9")
    assert is_this_host("[::1]")
    assert not is_this_host("192.0.2.1")
    assert not is_this_host("gpu1.example.org")


def test_the_name_that_a_listener_is_bound_to_is_trusted():
    """The operator wrote it down."""
    trusted_hosts("neuron", listen="gpu1.vpn", allowed_hosts=("Node.example",)).check_host(
        b"gpu1.vpn:9090"
    )
