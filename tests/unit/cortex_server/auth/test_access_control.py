"""Authentication, scopes and limits of requests."""

from __future__ import annotations

import pytest

from cortex_common.config.access import KeyEntry
from cortex_common.errors import AuthenticationFailed, Busy, CortexError, PermissionDenied
from cortex_common.schema.keys import Scope
from cortex_server.auth.access_control import INFER, AccessControl, is_local_request, is_loopback
from cortex_server.auth.keys import Keyring, hash_of

OPERATOR = frozenset({Scope.OPERATOR})


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
        assert access.authorize(headers, INFER, local=False).name == "a"


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
        access_control(entry("a", "good")).authorize(headers, INFER, local=True)


def test_an_expired_key_is_rejected_and_still_protects():
    """An expired key is rejected by name, and does not make the API public again for this host."""
    access = access_control(entry("a", "good", expires="2001-01-01"))
    with pytest.raises(AuthenticationFailed, match="'a' expired at 2001-01-01"):
        access.authorize(bearer("good"), INFER, local=True)
    with pytest.raises(AuthenticationFailed):
        access.authorize([], INFER, local=True)


def test_a_missing_scope_is_named():
    """The error names the missing scope and those that the key has."""
    access = access_control(entry("a", "s"), entry("o", "t", scopes=["operator"]))
    with pytest.raises(PermissionDenied, match="lacks the scope operator; it has infer"):
        access.authorize(bearer("s"), OPERATOR, local=True)


def test_without_keys_only_local_requests_are_accepted():
    """Requests of other hosts and through proxies are rejected with a hint."""
    access = access_control()
    assert access.authorize([], INFER, local=True).name == "anonymous"
    assert access.authorize(bearer("none"), OPERATOR, local=True).name == "anonymous"
    for headers, peer in (([], "10.0.0.1"), ([(b"x-forwarded-for", b"10.0.0.1")], "127.0.0.1")):
        with pytest.raises(AuthenticationFailed) as caught:
            access.authorize(headers, INFER, local=is_local_request(peer, headers))
        assert "--insecure" in " ".join(caught.value.hints)


def test_insecure_opens_inference_and_not_the_operator_api():
    """Other hosts can use models, and nothing else."""
    access = access_control(insecure=True)
    assert access.authorize([], INFER, local=False).name == "anonymous"
    with pytest.raises(AuthenticationFailed):
        access.authorize([], OPERATOR, local=False)


def test_an_inference_key_does_not_lock_out_the_operator():
    """A scope requires a key only if there is a key with that scope."""
    access = access_control(entry("a", "s"))
    assert access.authorize([], OPERATOR, local=True).name == "anonymous"


def test_insecure_still_identifies_the_key():
    """A request with a key is counted for that key even if none is required."""
    access = access_control(entry("a", "s"), insecure=True)
    assert access.authorize(bearer("s"), INFER, local=False).name == "a"


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
    ("name", "value", "local"),
    [
        (b"host", b"127.0.0.1:8000", True),
        (b"host", b"[::1]:8000", True),
        (b"host", b"localhost", True),
        (b"host", b"gpu1.internal:8000", True),
        (b"host", b"evil.example:8000", False),
        (b"host", b"", False),
        (b"origin", b"http://localhost:3000", True),
        (b"origin", b"https://evil.example", False),
        (b"origin", b"null", False),
        (b"via", b"1.1 x", False),
    ],
)
def test_a_foreign_web_page_is_not_local(name, value, local):
    """Other origins, public names for this address, and proxies do not count as this host."""
    assert is_local_request("127.0.0.1", [(name, value)]) is local


def test_requests_per_minute_are_limited():
    """The third of two requests per minute is rejected with the seconds until the next."""
    access = access_control(entry("a", "s", limits={"requests_per_minute": 2}))
    for _ in range(2):
        access.release(access.admit(bearer("s"), local=False), "m", 1, 1, failed=False)
    with pytest.raises(Busy) as caught:
        access.admit(bearer("s"), local=False)
    assert caught.value.code == "rate_limited"
    assert 25 < caught.value.retry_after <= 30


def test_tokens_per_minute_are_counted_afterwards():
    """A response that exceeds the limit is complete; the next request waits for the deficit."""
    access = access_control(entry("a", "s", limits={"tokens_per_minute": 100}))
    access.release(access.admit(bearer("s"), local=False), "m", 100, 100, failed=False)
    with pytest.raises(Busy) as caught:
        access.admit(bearer("s"), local=False)
    assert 55 < caught.value.retry_after <= 61


def test_concurrent_requests_are_limited():
    """A released request makes room for the next."""
    access = access_control(entry("a", "s", limits={"max_in_flight": 1}))
    key = access.admit(bearer("s"), local=False)
    with pytest.raises(Busy):
        access.admit(bearer("s"), local=False)
    access.release(key, "m", 0, 0, failed=True)
    access.admit(bearer("s"), local=False)


def test_malformed_credentials_are_cortex_errors():
    """Arbitrary bytes cause an error of cortex, never another exception."""
    access = access_control(entry("a", "s"))
    for value in (b"\xff\xfe", b"Bearer ", b"bearer \x00", b"Bearer " + b"x" * 100_000):
        with pytest.raises(CortexError):
            access.authorize([(b"authorization", value)], INFER, local=False)
