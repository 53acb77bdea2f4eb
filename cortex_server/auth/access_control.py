"""The gate that every request comes through: the right key, within its limits. Nothing here waits."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from cortex_common.config.access import Scope
from cortex_common.errors import (
    AuthenticationFailed,
    CortexError,
    PermissionRefused,
    RateLimited,
    Unavailable,
)
from cortex_server.auth.keys import Account, Key, Keyring
from cortex_server.auth.usage import Usage

_PASSED_ON = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
"""Headers of a proxy: what it passes on comes from this host's proxy, not from this host."""

TELLING = _PASSED_ON | {b"host", b"origin"}
"""Names of the headers that tell."""

_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa")
"""Ends of names that nobody outside can own."""


def is_own(peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether this host itself asks.

    A web page from elsewhere, opened in a browser on this host, can send requests to it: either across origins, then
    Origin tells, or through a public name that was made to mean 127.0.0.1 (DNS rebinding), then Host tells.

    Args:
        peer: IP address of the other end.
        headers: of the request, names in lower case.
    """
    if not is_loopback(peer):
        return False
    for name, value in headers:
        if name not in TELLING:
            continue
        if name in _PASSED_ON:
            return False
        if name == b"host" and not _is_private(value):
            return False
        if name == b"origin" and not _is_private(value.partition(b"://")[2]):
            return False
    return True


def is_loopback(peer: str | None) -> bool:
    """Whether an IP address is this host's own."""
    return peer is not None and (peer.startswith("127.") or peer in {"::1", "::ffff:127.0.0.1"})


@lru_cache(maxsize=256)
def _is_private(authority: bytes) -> bool:
    """Whether nobody outside can own the name before the port."""
    text = authority.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    if "." not in name and ":" not in name:
        return bool(name)
    if name.endswith(_PRIVATE):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


Headers = Iterable[tuple[bytes, bytes]]

CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
"""Names of the headers that a gate looks at; without the others it says the same."""

INFER = frozenset({Scope.INFER})
_OPENED_BY_INSECURE = frozenset({Scope.INFER, Scope.METRICS})
STOPPING_RETRY_S = 5.0


class AccessControl:
    """See the module.

    Args:
        keyring: the keys.
        insecure: inference and metrics need no key.
        usage: where what keys used is counted.

    Attributes:
        stopping: new requests are sent away.
    """

    def __init__(
        self, keyring: Keyring | None = None, *, insecure: bool = False, usage: Usage | None = None
    ) -> None:
        self.keyring = keyring or Keyring()
        self.insecure = insecure
        self.usage = usage or Usage()
        self.stopping = False

    def check(self, headers: Headers, scopes: frozenset[Scope], *, own: bool) -> Key:
        """Who may do what one of `scopes` opens.

        Either credential header being right is enough: tools often send a stale one beside the good one.

        Args:
            headers: of the request, names in lower case.
            scopes: any of them will do; none for what is open to all.
            own: this host itself asks, see `is_own`.

        Raises:
            AuthenticationFailed: no key, or none that is known and valid.
            PermissionRefused: it has none of the scopes.
        """
        ring = self.keyring
        problem: CortexError | None = None
        if ring.guarded:
            for name, value in headers:
                if name == b"x-api-key":
                    secret = value
                elif name == b"authorization" and value[:7].lower() == b"bearer ":
                    secret = value[7:].strip()
                else:
                    continue
                key = ring.find(secret)
                problem = _problem(key, scopes)
                if key is not None and problem is None:
                    return key
        if not scopes or self._open_to(scopes, own=own):
            return ring.anybody
        raise problem or self._no_key(scopes)

    def enter(self, headers: Headers, *, own: bool) -> Key:
        """Let an inference request in; `leave` must follow.

        Raises:
            AuthenticationFailed, PermissionRefused: see `check`.
            RateLimited: the key's limits are reached.
            Unavailable: the gateway is stopping.
        """
        if self.stopping:
            raise stopping()
        key = self.check(headers, INFER, own=own)
        account = key.account
        if account.limited:
            _within_limits(key, account, time.monotonic())
        account.in_flight += 1
        return key

    def named(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The key that came with a request, by its name, whether or not it opens anything."""
        secret = headers.get(b"x-api-key") or headers.get(b"authorization", b"")[7:].strip()
        key = self.keyring.find(secret)
        return None if key is None else key.name

    def leave(self, key: Key, model: str, tokens_in: int, tokens_out: int, *, failed: bool) -> None:
        """Count a request that `enter` let in and that ended; without a model it never got to be one."""
        account = key.account
        account.in_flight -= 1
        if account.tokens is not None:
            account.tokens.take(tokens_in + tokens_out)
        if model:
            self.usage.count(key.name, model, tokens_in, tokens_out, failed=failed)

    def _open_to(self, scopes: frozenset[Scope], *, own: bool) -> bool:
        if self.insecure and not scopes.isdisjoint(_OPENED_BY_INSECURE):
            return True
        return own and scopes.isdisjoint(self.keyring.guarded)

    def _no_key(self, scopes: frozenset[Scope]) -> AuthenticationFailed:
        names = " or ".join(sorted(scopes))
        if not scopes.isdisjoint(self.keyring.guarded):
            return AuthenticationFailed(
                f"this needs a key with the scope {names}",
                hints=["send it as `Authorization: Bearer ...` or `x-api-key: ...`"],
            )
        hints = [
            f"make a key on the gateway's host: `cortex keys create NAME --scope {min(scopes)}`"
        ]
        if not scopes.isdisjoint(_OPENED_BY_INSECURE):
            hints.append("or open it to everybody: `cortex serve gateway --insecure`")
        return AuthenticationFailed(
            f"without keys of the scope {names} this gateway serves its own host only", hints=hints
        )


def _problem(key: Key | None, scopes: frozenset[Scope]) -> CortexError | None:
    if key is None:
        return AuthenticationFailed("this key is not known", hints=["it may have been revoked"])
    if key.expires <= time.time():
        return AuthenticationFailed(f"key {key.name!r} ended at {key.expired()}")
    if scopes and not key.opens(scopes):
        names = " or ".join(sorted(scopes))
        has = ", ".join(sorted(key.terms.scopes))
        return PermissionRefused(f"key {key.name!r} lacks the scope {names}; it has {has}")
    return None


def _within_limits(key: Key, account: Account, now: float) -> None:
    most = account.limits.max_in_flight
    if most is not None and account.in_flight >= most:
        raise limited(key, f"{most} requests under way", 1.0)
    if account.tokens is not None and (wait := account.tokens.wait(1.0, now)):
        raise limited(key, f"{account.tokens.per_minute} tokens a minute", wait)
    if account.requests is not None:
        if wait := account.requests.wait(1.0, now):
            raise limited(key, f"{account.requests.per_minute} requests a minute", wait)
        account.requests.take(1.0)


def stopping() -> Unavailable:
    """The error for a request that comes when the gateway is about to end."""
    return Unavailable("the gateway is stopping", retry_after=STOPPING_RETRY_S)


def limited(key: Key, what: str, wait: float) -> RateLimited:
    """The error for a request over a limit.

    Args:
        key: whose limit.
        what: the limit, in words.
        wait: seconds until a repeat makes sense.
    """
    return RateLimited(
        f"key {key.name!r} is at its limit of {what}",
        hints=["`cortex keys ls` shows the limits of each key"],
        retry_after=wait,
    )
