"""API keys as the gateway holds them: found by the hash of their secret, never with the secret itself."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from cortex_common.config.access import KeyEntry, KeyLimits, KeyTerms, Scope


class TokenBucket:
    """An allowance that refills evenly and holds at most what a minute gives.

    Args:
        per_minute: how much a minute gives.
        now: monotonic seconds.
        level: how much is there; by default all of it.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float, level: float | None = None) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute) if level is None else level
        self._at = now

    @property
    def state(self) -> tuple[float, float]:
        """How much was there, and when, in monotonic seconds."""
        return self._level, self._at

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is there now."""
        level = min(self._level + (now - self._at) * self.per_minute / 60, self.per_minute)
        self._level, self._at = level, now
        return max(0.0, (amount - level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Use some of it; what is used up in hindsight leaves a debt."""
        self._level -= amount


ANYBODY = "anybody"
"""Whom requests without a key are counted for."""

_PREFIX = "ctx_"
"""So that people and secret scanners know one when they see it."""


def new_secret() -> str:
    """A secret of 256 random bits; so many that a plain hash of it can't be turned back."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """What is kept of a secret, as [[keys]] has it."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


class Account:
    """What a key uses now, and the rest of its limits.

    Attributes:
        in_flight: its requests under way.
        limited: it has limits.
    """

    __slots__ = ("in_flight", "limited", "limits", "requests", "tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.limits = KeyLimits()
        self.limited = False
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None

    def limit(self, limits: KeyLimits, now: float) -> None:
        """Apply limits; those that did not change go on as they stand."""
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
    """A key that opens something.

    Attributes:
        name: what operators call it.
        hash: of its secret, "sha256:..."; empty where there is none.
        terms: what it may do.
        configured: it stands in cortex.toml; else it was made at run time.
        created: Unix seconds; 0 for one of cortex.toml.
        expires: Unix seconds; infinity for never.
        account: shared by all versions of the key, so that a reload resets no count.
    """

    name: str
    hash: str
    terms: KeyTerms
    configured: bool = False
    created: float = 0.0
    account: Account = field(default_factory=Account)
    expires: float = field(init=False)

    def __post_init__(self) -> None:
        until = self.terms.expires
        object.__setattr__(self, "expires", float("inf") if until is None else until.timestamp())

    def opens(self, scopes: frozenset[Scope]) -> bool:
        """Whether it has one of the scopes."""
        return not scopes.isdisjoint(self.terms.scopes)

    def allows(self, *names: str) -> bool:
        """Whether it may ask for the model that goes by these names."""
        patterns = self.terms.models
        return not patterns or any(fnmatchcase(n, p) for p in patterns for n in names)

    def expired(self) -> str:
        """When it ended, for a message."""
        return datetime.fromtimestamp(self.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key made at run time, as it is kept.

    Attributes:
        created: Unix seconds.
    """

    name: str
    hash: str
    terms: KeyTerms
    created: float


class Keyring:
    """All keys, found by their secret with one look-up."""

    def __init__(self) -> None:
        self.anybody = Key(ANYBODY, "", KeyTerms())
        self._by_name: dict[str, Key] = {}
        self._by_digest: dict[bytes, Key] = {}
        self.guarded: frozenset[Scope] = frozenset()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them, by name."""
        return tuple(self._by_name[name] for name in sorted(self._by_name))

    def use(self, configured: Iterable[KeyEntry], made: Iterable[MadeKey], now: float) -> None:
        """Replace all keys. A name of the configuration hides the same name made at run time.

        Args:
            configured: of cortex.toml.
            made: at run time.
            now: monotonic seconds.
        """
        kept = {name: key.account for name, key in self._by_name.items()}
        keys = {m.name: Key(m.name, m.hash, m.terms, created=m.created) for m in made}
        keys |= {e.name: Key(e.name, e.hash, e, configured=True) for e in configured}
        keys = {n: replace(k, account=kept.get(n, k.account)) for n, k in keys.items()}
        for key in keys.values():
            key.account.limit(key.terms.limits, now)
        self._by_name = keys
        self._by_digest = {bytes.fromhex(k.hash.removeprefix("sha256:")): k for k in keys.values()}
        # An expired key still guards: what it opened must not stand open because it ended.
        self.guarded = frozenset(scope for k in keys.values() for scope in k.terms.scopes)

    def named(self, name: str) -> Key | None:
        """The key of that name."""
        return self._by_name.get(name)

    def find(self, secret: bytes) -> Key | None:
        """The key that a caller's secret belongs to.

        What is looked up is the secret's hash, so the time that it takes tells nothing about any secret.
        """
        return self._by_digest.get(hashlib.sha256(secret).digest())
