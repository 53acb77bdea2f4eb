"""Authentication and authorization of requests: the right key, within its limits. Nothing here waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from cortex_common.errors import (
    AuthenticationFailed,
    CortexError,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_common.schema.keys import Scope
from cortex_server.auth.keys import KEYLESS_ON_THIS_HOST, Account, Key, Keyring
from cortex_server.auth.usage import UsageCounter

Headers = Iterable[tuple[bytes, bytes]]

CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key"})
"""Names of the headers that `AccessControl` reads."""

INFER = frozenset({Scope.INFER})

_OPENED_BY_INSECURE = KEYLESS_ON_THIS_HOST

_FORWARDED_HEADERS = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
"""Headers that a reverse proxy adds: the request comes from another host, through a proxy on this one."""

_STOPPING_RETRY_S = 5.0

OPERATOR_SOCKET = "operator socket"
"""Peer of connections to the operator socket, which only root and the gateway's own user can open."""


class Place(Enum):
    """Where a request comes from."""

    OPERATOR_SOCKET = "operator socket"
    """The gateway's Unix socket."""

    THIS_HOST = "this host"
    """A loopback address. That is no proof: a proxy on this host forwards requests of others from there."""

    ELSEWHERE = "elsewhere"
    """Any other address."""


_KEYLESS = {
    Place.OPERATOR_SOCKET: frozenset(Scope),
    Place.THIS_HOST: KEYLESS_ON_THIS_HOST,
    Place.ELSEWHERE: frozenset[Scope](),
}
"""Scopes that callers have without a key, by place. On this host, only as long as no key has the scope."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request shows about its sender, beside credentials.

    Attributes:
        place: where it comes from.
        host: Host header.
        origin: Origin header.
        site: Sec-Fetch-Site header.
    """

    place: Place
    host: bytes | None = None
    origin: bytes | None = None
    site: bytes | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[bytes, bytes], peer: str | None) -> Caller:
        """Return the caller of a request.

        Args:
            headers: headers by name in lower case.
            peer: IP address of the client, or `OPERATOR_SOCKET`.
        """
        place = Place.ELSEWHERE
        if peer == OPERATOR_SOCKET:
            place = Place.OPERATOR_SOCKET
        elif is_loopback(peer) and _FORWARDED_HEADERS.isdisjoint(headers):
            place = Place.THIS_HOST
        return cls(
            place, headers.get(b"host"), headers.get(b"origin"), headers.get(b"sec-fetch-site")
        )


def is_loopback(peer: str | None) -> bool:
    """Return whether an IP address is a loopback address."""
    return peer is not None and (peer.startswith("127.") or peer in {"::1", "::ffff:127.0.0.1"})


class AccessControl:
    """Decides which requests are allowed, and counts the requests and tokens of each key.

    Args:
        keyring: the keys.
        insecure: whether inference and metrics need no key.
        usage: where the usage of keys is counted.
        trusted: names and pages that are trusted; by default loopback names and pages.

    Attributes:
        stopping: whether new requests are rejected because the gateway is stopping.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        insecure: bool = False,
        usage: UsageCounter | None = None,
        trusted: TrustedHosts | None = None,
    ) -> None:
        self.trusted = trusted or TrustedHosts("gateway")
        self.keyring = keyring or Keyring()
        self.insecure = insecure
        self.usage = usage or UsageCounter()
        self.stopping = False

    def authorize(self, headers: Headers, scopes: frozenset[Scope], caller: Caller) -> Key:
        """Return the key of a request that may use what any of `scopes` allows.

        One valid credential header is sufficient: tools often send a stale one as well. Host matters only without one,
        because a page whose name resolves to this host has no key.

        Args:
            headers: of the request, with names in lower case.
            scopes: any one of them is sufficient; empty for public routes.
            caller: who sent it.

        Raises:
            AuthenticationFailed: there is no key, or no valid one.
            PermissionDenied: the key has none of the scopes, or a foreign web page caused the request.
        """
        self.trusted.check_page(caller.host, caller.origin, caller.site)
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
        if not scopes or self._needs_no_key(scopes, caller.place):
            self.trusted.check_host(caller.host)
            return keyring.anonymous
        raise error or self._missing_key(scopes)

    def admit(self, headers: Headers, caller: Caller) -> Key:
        """Authorize an inference request and count it as in flight; `release` must follow.

        Raises:
            AuthenticationFailed, PermissionDenied: see `authorize`.
            RateLimited: a limit of the key is reached.
            Unavailable: the gateway is stopping.
        """
        if self.stopping:
            raise Unavailable("the gateway is stopping", retry_after=_STOPPING_RETRY_S)
        key = self.authorize(headers, INFER, caller)
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

    def _needs_no_key(self, scopes: frozenset[Scope], place: Place) -> bool:
        if self.insecure and not scopes.isdisjoint(_OPENED_BY_INSECURE):
            return True
        if place is Place.OPERATOR_SOCKET:
            return True
        keyless, protected = _KEYLESS[place], self.keyring.protected
        return any(scope in keyless and scope not in protected for scope in scopes)

    def _missing_key(self, scopes: frozenset[Scope]) -> AuthenticationFailed:
        names = " or ".join(sorted(scopes))
        if not scopes.isdisjoint(self.keyring.protected):
            return AuthenticationFailed(
                f"a key with the scope {names} is required",
                hints=["send it as `Authorization: Bearer ...` or `x-api-key: ...`"],
            )
        create = f"`cortex keys create NAME --scope {min(scopes)}`"
        if scopes.isdisjoint(_OPENED_BY_INSECURE):
            return AuthenticationFailed(
                f"no key has the scope {names}, so only root and the gateway's user on its own host have it",
                hints=[f"as one of them, use the command, or create a key: {create}"],
            )
        return AuthenticationFailed(
            f"no key has the scope {names}, so the gateway accepts such requests from its own host only",
            hints=[
                f"create a key on the gateway's host: {create}",
                "or allow requests without a key: `cortex serve gateway --insecure`",
            ],
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
