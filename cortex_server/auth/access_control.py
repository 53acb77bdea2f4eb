"""Authentication and authorization of requests: the right key, within its limits. Nothing here waits."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from cortex_common.errors import (
    AuthenticationFailed,
    CortexError,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from cortex_common.schema.keys import Scope
from cortex_server.auth.keys import Account, Key, Keyring
from cortex_server.auth.usage import UsageCounter

Headers = Iterable[tuple[bytes, bytes]]

CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})
"""Names of the headers that `AccessControl` reads."""

INFER = frozenset({Scope.INFER})

_FORWARDED_HEADERS = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
"""Headers that a reverse proxy adds: the request comes from another host, through a proxy on this one."""

_LOCALITY_HEADERS = _FORWARDED_HEADERS | {b"host", b"origin"}

_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
"""Domains that cannot be registered publicly."""

_OPENED_BY_INSECURE = frozenset({Scope.INFER, Scope.METRICS})

_STOPPING_RETRY_S = 5.0


def is_local_request(peer: str | None, headers: Headers) -> bool:
    """Return whether a request was made by a program on this host.

    A web page from elsewhere, opened in a browser on this host, can send requests here too: across origins, which the
    Origin header shows, or through a public name that resolves to 127.0.0.1 (DNS rebinding), which Host shows.

    Args:
        peer: IP address of the client.
        headers: of the request, with names in lower case.
    """
    if not is_loopback(peer):
        return False
    for name, value in headers:
        if name not in _LOCALITY_HEADERS:
            continue
        if name in _FORWARDED_HEADERS:
            return False
        if name == b"host" and not _is_private(value):
            return False
        if name == b"origin" and not _is_private(value.partition(b"://")[2]):
            return False
    return True


def is_loopback(peer: str | None) -> bool:
    """Return whether an IP address is a loopback address."""
    return peer is not None and (peer.startswith("127.") or peer in {"::1", "::ffff:127.0.0.1"})


@lru_cache(maxsize=256)
def _is_private(authority: bytes) -> bool:
    """Return whether the host of `host:port` is an IP address or a name that cannot be registered publicly."""
    text = authority.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    if "." not in name and ":" not in name:
        return bool(name)
    if name.endswith(_PRIVATE_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class AccessControl:
    """Decides which requests are allowed, and counts the requests and tokens of each key.

    Args:
        keyring: the keys.
        insecure: whether inference and metrics need no key.
        usage: where the usage of keys is counted.

    Attributes:
        stopping: whether new requests are rejected because the gateway is stopping.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        insecure: bool = False,
        usage: UsageCounter | None = None,
    ) -> None:
        self.keyring = keyring or Keyring()
        self.insecure = insecure
        self.usage = usage or UsageCounter()
        self.stopping = False

    def authorize(self, headers: Headers, scopes: frozenset[Scope], *, local: bool) -> Key:
        """Return the key of a request that may use what any of `scopes` allows.

        One valid credential header is sufficient: tools often send a stale one as well.

        Args:
            headers: of the request, with names in lower case.
            scopes: any one of them is sufficient; empty for public routes.
            local: whether `is_local_request`.

        Raises:
            AuthenticationFailed: there is no key, or no valid one.
            PermissionDenied: the key has none of the scopes.
        """
        keyring = self.keyring
        error: CortexError | None = None
        if keyring.protected:
            for name, value in headers:
                if name == b"x-api-key":
                    secret = value
                elif name == b"authorization" and value[:7].lower() == b"bearer ":
                    secret = value[7:].strip()
                else:
                    continue
                key = keyring.find(secret)
                error = _key_error(key, scopes)
                if key is not None and error is None:
                    return key
        if not scopes or self._needs_no_key(scopes, local=local):
            return keyring.anonymous
        raise error or self._missing_key(scopes)

    def admit(self, headers: Headers, *, local: bool) -> Key:
        """Authorize an inference request and count it as in flight; `release` must follow.

        Raises:
            AuthenticationFailed, PermissionDenied: see `authorize`.
            RateLimited: a limit of the key is reached.
            Unavailable: the gateway is stopping.
        """
        if self.stopping:
            raise Unavailable("the gateway is stopping", retry_after=_STOPPING_RETRY_S)
        key = self.authorize(headers, INFER, local=local)
        account = key.account
        if account.limited:
            _check_limits(key, account, time.monotonic())
        account.in_flight += 1
        return key

    def release(
        self, key: Key, model: str, tokens_in: int, tokens_out: int, *, failed: bool
    ) -> None:
        """Count a finished request that `admit` admitted. One that reached no model is not added to the usage."""
        account = key.account
        account.in_flight -= 1
        if account.tokens is not None:
            account.tokens.take(tokens_in + tokens_out)
        if model:
            self.usage.count(key.name, model, tokens_in, tokens_out, failed=failed)

    def key_name(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Return the name of the key that a request carries, whether or not the key allows it."""
        secret = headers.get(b"x-api-key") or headers.get(b"authorization", b"")[7:].strip()
        key = self.keyring.find(secret)
        return None if key is None else key.name

    def _needs_no_key(self, scopes: frozenset[Scope], *, local: bool) -> bool:
        if self.insecure and not scopes.isdisjoint(_OPENED_BY_INSECURE):
            return True
        return local and scopes.isdisjoint(self.keyring.protected)

    def _missing_key(self, scopes: frozenset[Scope]) -> AuthenticationFailed:
        names = " or ".join(sorted(scopes))
        if not scopes.isdisjoint(self.keyring.protected):
            return AuthenticationFailed(
                f"a key with the scope {names} is required",
                hints=["send it as `Authorization: Bearer ...` or `x-api-key: ...`"],
            )
        hints = [
            f"create a key on the gateway's host: `cortex keys create NAME --scope {min(scopes)}`"
        ]
        if not scopes.isdisjoint(_OPENED_BY_INSECURE):
            hints.append("or allow requests without a key: `cortex serve gateway --insecure`")
        return AuthenticationFailed(
            f"no key has the scope {names}, so the gateway accepts such requests from its own host only",
            hints=hints,
        )


def _key_error(key: Key | None, scopes: frozenset[Scope]) -> CortexError | None:
    if key is None:
        return AuthenticationFailed("unknown API key", hints=["it may have been revoked"])
    if key.expires <= time.time():
        return AuthenticationFailed(f"key {key.name!r} expired at {key.expiry()}")
    if scopes and not key.has_any_scope(scopes):
        names = " or ".join(sorted(scopes))
        has = ", ".join(sorted(key.terms.scopes))
        return PermissionDenied(f"key {key.name!r} lacks the scope {names}; it has {has}")
    return None


def _check_limits(key: Key, account: Account, now: float) -> None:
    max_in_flight = account.limits.max_in_flight
    if max_in_flight is not None and account.in_flight >= max_in_flight:
        raise _rate_limited(key, f"{max_in_flight} requests in flight", 1.0)
    if account.tokens is not None and (wait_s := account.tokens.wait(1.0, now)):
        raise _rate_limited(key, f"{account.tokens.per_minute} tokens per minute", wait_s)
    if account.requests is not None:
        if wait_s := account.requests.wait(1.0, now):
            raise _rate_limited(key, f"{account.requests.per_minute} requests per minute", wait_s)
        account.requests.take(1.0)


def _rate_limited(key: Key, limit: str, retry_after: float) -> RateLimited:
    return RateLimited(
        f"key {key.name!r} has reached its limit of {limit}",
        hints=["`cortex keys ls` shows the limits of each key"],
        retry_after=retry_after,
    )
