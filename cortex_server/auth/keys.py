"""API keys in memory: found by the hash of their secret, which itself is never stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from cortex_common.config.access import KeyEntry
from cortex_common.schema.keys import KeyLimits, KeyTerms, Scope

ANONYMOUS = "anonymous"
"""Name under which requests without a key are counted."""

KEYLESS_ON_THIS_HOST = frozenset({Scope.INFER, Scope.METRICS})
"""Scopes that programs on the gateway's host have without a key, as long as no key has them."""

_KEY_PREFIX = "ctx_"
"""Lets people and secret scanners recognize a key of cortex."""


def new_secret() -> str:
    """Return a secret of 256 random bits: enough that a plain hash of it cannot be reversed."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """Return the hash of a secret in the form of `[[keys]] hash`: "sha256:" and 64 hex digits."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


class TokenBucket:
    """A token bucket that refills at a constant rate and holds at most one minute's worth.

    Args:
        per_minute: tokens added per minute, and the capacity.
        now: monotonic seconds.
    """

    __slots__ = ("_level", "_updated_at", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._updated_at = now

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` tokens are available; 0 if they are available now."""
        level = min(self._level + (now - self._updated_at) * self.per_minute / 60, self.per_minute)
        self._level, self._updated_at = level, now
        return max(0.0, (amount - level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Remove tokens. The level becomes negative if more is removed than was available."""
        self._level -= amount


class Account:
    """Current usage of one key, measured against its limits.

    Attributes:
        in_flight: requests in flight.
        limits: the limits of the key.
        limited: whether there are any limits.
        requests: bucket of the limit on requests per minute, if any.
        tokens: bucket of the limit on tokens per minute, if any.
    """

    __slots__ = ("in_flight", "limited", "limits", "requests", "tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.limits = KeyLimits()
        self.limited = False
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None

    def set_limits(self, limits: KeyLimits, now: float) -> None:
        """Replace the limits. The buckets of limits that did not change keep their level."""
        old, self.limits = self.limits, limits
        if limits.requests_per_minute != old.requests_per_minute:
            self.requests = _bucket(limits.requests_per_minute, now)
        if limits.tokens_per_minute != old.tokens_per_minute:
            self.tokens = _bucket(limits.tokens_per_minute, now)
        self.limited = limits != KeyLimits()


def _bucket(per_minute: int | None, now: float) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, now)


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """An API key.

    Attributes:
        name: unique name.
        hash: hash of its secret, "sha256:..."; empty for the anonymous key.
        terms: scopes, models, limits and expiry.
        configured: whether it comes from cortex.toml; otherwise it was created at run time.
        created: Unix seconds; 0 for a key from cortex.toml.
        expires: Unix seconds; infinity if it never expires.
        account: current usage, shared by all versions of the key so that a reload resets no count.
    """

    name: str
    hash: str
    terms: KeyTerms
    configured: bool = False
    created: float = 0.0
    account: Account = field(default_factory=Account)
    expires: float = field(init=False)

    def __post_init__(self) -> None:
        expires = self.terms.expires
        timestamp = float("inf") if expires is None else expires.timestamp()
        object.__setattr__(self, "expires", timestamp)

    def has_any_scope(self, scopes: frozenset[Scope]) -> bool:
        """Return whether the key has at least one of the scopes."""
        return not scopes.isdisjoint(self.terms.scopes)

    def allows_model(self, *names: str) -> bool:
        """Return whether the key may use the model that has these names."""
        patterns = self.terms.models
        return not patterns or any(fnmatchcase(n, p) for p in patterns for n in names)

    def expiry(self) -> str:
        """Return the time of expiry as text for an error message."""
        return datetime.fromtimestamp(self.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True, slots=True)
class RuntimeKey:
    """A key created at run time, as it is stored.

    Attributes:
        created: Unix seconds.
    """

    name: str
    hash: str
    terms: KeyTerms
    created: float


class Keyring:
    """All keys, found by their secret in one lookup.

    Attributes:
        anonymous: the key of requests without a key.
        protected: scopes that at least one key has, and that therefore require a key.
    """

    def __init__(self) -> None:
        self.anonymous = Key(ANONYMOUS, "", KeyTerms())
        self.protected: frozenset[Scope] = frozenset()
        self._by_name: dict[str, Key] = {}
        self._by_digest: dict[bytes, Key] = {}

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, sorted by name."""
        return tuple(self._by_name[name] for name in sorted(self._by_name))

    def replace(
        self, configured: Iterable[KeyEntry], created: Iterable[RuntimeKey], now: float
    ) -> None:
        """Replace all keys. A key from cortex.toml hides one of the same name that was created at run time.

        Args:
            configured: keys from cortex.toml.
            created: keys created at run time.
            now: monotonic seconds.
        """
        accounts = {name: key.account for name, key in self._by_name.items()}
        keys = {k.name: Key(k.name, k.hash, k.terms, created=k.created) for k in created}
        keys |= {k.name: Key(k.name, k.hash, k, configured=True) for k in configured}
        keys = {n: replace(k, account=accounts.get(n, k.account)) for n, k in keys.items()}
        for key in keys.values():
            key.account.set_limits(key.terms.limits, now)
        self._by_name = keys
        self._by_digest = {bytes.fromhex(k.hash.removeprefix("sha256:")): k for k in keys.values()}
        # Expired keys count too: expiry must not make an API accessible without a key.
        self.protected = frozenset(scope for k in keys.values() for scope in k.terms.scopes)

    def get(self, name: str) -> Key | None:
        """Return the key with this name."""
        return self._by_name.get(name)

    def find(self, secret: bytes) -> Key | None:
        """Return the key with this secret.

        The lookup uses the hash of the secret, so its timing reveals nothing about any secret.
        """
        return self._by_digest.get(hashlib.sha256(secret).digest())
