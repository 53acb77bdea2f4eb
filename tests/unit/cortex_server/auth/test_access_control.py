"""Authentication, scopes and limits of requests."""

from __future__ import annotations

import pytest

from cortex_common.config.access import KeyEntry
from cortex_common.errors import AuthenticationFailed, Busy, CortexError, PermissionDenied
from cortex_common.schema.keys import Scope
from cortex_server.auth.access_control import (
    INFER,
    OPERATOR_SOCKET,
    AccessControl,
    Caller,
    Place,
    is_loopback,
)
from cortex_server.auth.keys import Keyring, hash_of

OPERATOR = frozenset({Scope.OPERATOR})
LOCAL = Caller(Place.THIS_HOST)
REMOTE = Caller(Place.ELSEWHERE)
SOCKET = Caller(Place.OPERATOR_SOCKET)


def entry(name: str, secret: str, **terms: object) -> KeyEntry:
    """Return a key as in cortex.toml."""
    return KeyEntry.model_validate({"name": name, "hash": hash_of(secret)} | terms)


def access_control(*keys: KeyEntry, insecure: bool = False) -> AccessControl:
    """Return an access control with these keys."""
    keyring = Keyring()
    keyring.replace(keys, (), 0.0)
    return AccessControl(keyring, insecure=insecure)


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    """Return the header with this secret."""
    return [(b"authorization", b"Bearer " + secret.encode())]


def test_one_valid_credential_header_is_sufficient():
    """A stale bearer token beside a valid x-api-key is accepted, and vice versa."""
    access = access_control(entry("a", "good"))
    for headers in (
        [(b"authorization", b"Bearer stale"), (b"x-api-key", b"good")],
        [(b"x-api-key", b"stale"), (b"authorization", b"bearer good")],
    ):
        assert access.authorize(headers, INFER, REMOTE).name == "a"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer("bad"),
        [(b"authorization", b"Basic good")],
        [(b"authorization", b"good")],
        [(b"x-api-key", b"good ")],
        [(b"x-api-key", b"")],
        [(b"cookie", b"x-api-key=good")],
    ],
)
def test_anything_but_the_secret_is_rejected(headers):
    """No credential, a wrong one, and the right one in the wrong place."""
    with pytest.raises(AuthenticationFailed):
        access_control(entry("a", "good")).authorize(headers, INFER, LOCAL)


def test_an_expired_key_is_rejected_and_still_protects():
    """An expired key is rejected by name, and does not make the API public again for this host."""
    access = access_control(entry("a", "good", expires="2001-01-01"))
    with pytest.raises(AuthenticationFailed, match="'a' expired at 2001-01-01"):
        access.authorize(bearer("good"), INFER, LOCAL)
    with pytest.raises(AuthenticationFailed):
        access.authorize([], INFER, LOCAL)


def test_a_missing_scope_is_named():
    """The error names the missing scope and those that the key has."""
    access = access_control(entry("a", "s"), entry("o", "t", scopes=["operator"]))
    with pytest.raises(PermissionDenied, match="lacks the scope operator; it has infer"):
        access.authorize(bearer("s"), OPERATOR, LOCAL)


def test_without_keys_this_host_has_inference_and_nothing_else():
    """Requests of other hosts are rejected with a hint, and the operator API is closed to loopback addresses too."""
    access = access_control()
    assert access.authorize([], INFER, LOCAL).name == "anonymous"
    assert access.authorize(bearer("none"), INFER, LOCAL).name == "anonymous"
    for scopes, caller in ((INFER, REMOTE), (OPERATOR, LOCAL), (OPERATOR, REMOTE)):
        with pytest.raises(AuthenticationFailed) as caught:
            access.authorize([], scopes, caller)
        assert ("--insecure" in " ".join(caught.value.hints)) is (scopes is INFER)


def test_the_operator_socket_needs_no_key_whatever_keys_exist():
    """Who can open it could change the settings and the database anyway."""
    for access in (access_control(), access_control(entry("a", "s", scopes=list(Scope)))):
        for scope in Scope:
            assert access.authorize([], frozenset({scope}), SOCKET).name == "anonymous"


def test_insecure_opens_inference_and_not_the_operator_api():
    """Other hosts can use models, and nothing else."""
    access = access_control(insecure=True)
    assert access.authorize([], INFER, REMOTE).name == "anonymous"
    with pytest.raises(AuthenticationFailed):
        access.authorize([], OPERATOR, REMOTE)


def test_an_operator_key_does_not_close_inference_on_this_host():
    """A scope requires a key only if there is a key with that scope."""
    access = access_control(entry("o", "s", scopes=["operator"]))
    assert access.authorize([], INFER, LOCAL).name == "anonymous"
    assert access.authorize([], INFER | OPERATOR, LOCAL).name == "anonymous"


def test_insecure_still_identifies_the_key():
    """A request with a key is counted for that key even if none is required."""
    access = access_control(entry("a", "s"), insecure=True)
    assert access.authorize(bearer("s"), INFER, REMOTE).name == "a"


@pytest.mark.parametrize(
    ("peer", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True)]
    + [
        (p, False)
        for p in ("10.0.0.1", "128.0.0.1", "::2", "", None, "localhost", "::ffff:10.0.0.1")
    ],
)
def test_loopback_addresses(peer, loopback):
    """Only addresses of this host are loopback addresses."""
    assert is_loopback(peer) is loopback


@pytest.mark.parametrize(
    ("peer", "headers", "place"),
    [
        ("127.0.0.1", {}, Place.THIS_HOST),
        ("127.0.0.1", {b"x-forwarded-for": b"10.0.0.1"}, Place.ELSEWHERE),
        ("127.0.0.1", {b"via": b"1.1 x"}, Place.ELSEWHERE),
        ("10.0.0.1", {b"x-forwarded-for": b"127.0.0.1"}, Place.ELSEWHERE),
        (None, {}, Place.ELSEWHERE),
        (OPERATOR_SOCKET, {}, Place.OPERATOR_SOCKET),
        (OPERATOR_SOCKET, {b"x-forwarded-for": b"10.0.0.1"}, Place.OPERATOR_SOCKET),
    ],
)
def test_no_header_brings_a_caller_closer(peer, headers, place):
    """Headers of proxies turn this host into another one, and never the other way round."""
    assert Caller.from_headers(headers, peer).place is place


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", b"evil.example:8000"),
        ("origin", b"https://evil.example"),
        ("origin", b"null"),
        ("site", b"cross-site"),
    ],
)
def test_foreign_pages_are_rejected_in_every_place(name, value):
    """Neither a loopback address nor the operator socket helps a page from elsewhere."""
    for place in (Place.THIS_HOST, Place.OPERATOR_SOCKET):
        with pytest.raises(PermissionDenied):
            access_control().authorize([], INFER, Caller(place, **{name: value}))


def test_a_valid_key_is_sufficient_for_an_unknown_host_name_but_not_for_a_foreign_page():
    """A page whose name was bound to this host has no key; one with a key still needs to be allowed."""
    access = access_control(entry("a", "s"))
    caller = Caller(Place.ELSEWHERE, host=b"gate.example")
    assert access.authorize(bearer("s"), INFER, caller).name == "a"
    foreign = Caller(Place.ELSEWHERE, origin=b"https://evil.example")
    with pytest.raises(PermissionDenied):
        access.authorize(bearer("s"), INFER, foreign)


def test_requests_per_minute_are_limited():
    """The third of two requests per minute is rejected with the seconds until the next."""
    access = access_control(entry("a", "s", limits={"requests_per_minute": 2}))
    for _ in range(2):
        access.release(access.admit(bearer("s"), REMOTE), "m", 1, 1, failed=False)
    with pytest.raises(Busy) as caught:
        access.admit(bearer("s"), REMOTE)
    assert caught.value.code == "rate_limited"
    assert 25 < caught.value.retry_after <= 30


def test_tokens_per_minute_are_counted_afterwards():
    """A response that exceeds the limit is complete; the next request waits for the deficit."""
    access = access_control(entry("a", "s", limits={"tokens_per_minute": 100}))
    access.release(access.admit(bearer("s"), REMOTE), "m", 100, 100, failed=False)
    with pytest.raises(Busy) as caught:
        access.admit(bearer("s"), REMOTE)
    assert 55 < caught.value.retry_after <= 61


def test_concurrent_requests_are_limited():
    """A released request makes room for the next."""
    access = access_control(entry("a", "s", limits={"max_in_flight": 1}))
    key = access.admit(bearer("s"), REMOTE)
    with pytest.raises(Busy):
        access.admit(bearer("s"), REMOTE)
    access.release(key, "m", 0, 0, failed=True)
    access.admit(bearer("s"), REMOTE)


def test_malformed_credentials_are_cortex_errors():
    """Arbitrary bytes cause an error of cortex, never another exception."""
    access = access_control(entry("a", "s"))
    for value in (b"\xff\xfe", b"Bearer ", b"bearer \x00", b"Bearer " + b"x" * 100_000):
        with pytest.raises(CortexError):
            access.authorize([(b"authorization", value)], INFER, REMOTE)
