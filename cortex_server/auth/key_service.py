"""Creates, lists and revokes API keys, and saves their usage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from cortex_common.config.access import KeyEntry
from cortex_common.errors import Conflict, NotFound, Unavailable, nearest_names
from cortex_common.log import event
from cortex_common.schema.keys import CreatedKey, CreateKeyRequest, KeyTerms, KeyView, UsageRow
from cortex_server.auth.keys import (
    ANONYMOUS,
    KEYLESS_ON_THIS_HOST,
    Key,
    Keyring,
    RuntimeKey,
    hash_of,
    new_secret,
)
from cortex_server.auth.usage import UsageCounter, UsageCounts

log = logging.getLogger("cortex.keys")

SAVE_INTERVAL_S = 5.0
"""At most this much usage is lost when the gateway crashes."""


class KeyStorage(Protocol):
    """Persistent storage of keys created at run time and of the usage of all keys."""

    def load_keys(self) -> tuple[RuntimeKey, ...]:
        """Return all keys; blocks. One that can't be read is returned as an expired key with all scopes."""
        ...

    async def add_key(self, key: RuntimeKey) -> None:
        """Add a key.

        Raises:
            Unavailable: it cannot be saved.
        """
        ...

    async def remove_key(self, name: str) -> None:
        """Remove a key.

        Raises:
            Unavailable: that cannot be saved.
        """
        ...

    async def add_usage(self, day: str, counts: Mapping[tuple[str, str], UsageCounts]) -> None:
        """Add to the usage of a day.

        Args:
            day: such as "2026-11-23".
            counts: by key and model.

        Raises:
            Unavailable: it cannot be saved.
        """
        ...

    async def usage(self, since: str, until: str) -> tuple[UsageRow, ...]:
        """Return the usage from one day to another, both included."""
        ...


class KeyService:
    """Owner of the keys created at run time, and of what is saved about all keys.

    Args:
        keyring: kept up to date with the configuration and the storage.
        usage: the counts to save.
        storage: where keys and usage are saved.
        configured: the keys from cortex.toml.
    """

    def __init__(
        self,
        keyring: Keyring,
        usage: UsageCounter,
        storage: KeyStorage,
        configured: Iterable[KeyEntry],
    ) -> None:
        self._keyring = keyring
        self._usage = usage
        self._storage = storage
        self._configured = tuple(configured)
        self._created = {key.name: key for key in storage.load_keys()}
        self._update_keyring()

    def configure(self, keys: Iterable[KeyEntry]) -> None:
        """Replace the keys from cortex.toml."""
        self._configured = tuple(keys)
        self._update_keyring()

    def keys(self) -> tuple[KeyView, ...]:
        """Return all keys, sorted by name."""
        return tuple(map(_view, self._keyring.keys))

    async def create(self, request: CreateKeyRequest) -> CreatedKey:
        """Create a key.

        Raises:
            Conflict: the name is taken.
            Unavailable: the key cannot be saved, so it was not created.
        """
        name = request.name
        if name == ANONYMOUS or self._keyring.get(name) or name in self._created:
            raise Conflict(
                f"a key named {name!r} already exists",
                hints=["revoke it first, or choose another name"],
            )
        secret = new_secret()
        terms = KeyTerms.model_validate(request.model_dump(exclude={"name"}))
        created = RuntimeKey(name, hash_of(secret), terms, time.time())
        # Before the first await, so that a concurrent request for the same name finds it taken.
        self._created[name] = created
        try:
            # Terms that the keyring can't apply are not stored: they would fail at every start.
            self._update_keyring()
            await self._storage.add_key(created)
        except Exception:
            del self._created[name]
            self._update_keyring()
            raise
        event(log, "key_created", key=name, scopes=",".join(terms.scopes))
        key = self._keyring.get(name)
        assert key is not None
        return CreatedKey(secret=secret, key=_view(key))

    async def revoke(self, name: str) -> KeyView:
        """Revoke a key immediately; its requests in flight continue.

        Raises:
            NotFound: there is no such key.
            Conflict: the key is defined in cortex.toml.
            Unavailable: the key is revoked, but that cannot be saved: it is valid again after a restart.
        """
        if any(entry.name == name for entry in self._configured):
            raise Conflict(
                f"key {name!r} is defined in cortex.toml",
                hints=["remove it there, then run `cortex config reload`"],
            )
        if name not in self._created:
            close = nearest_names(name, self._created)
            raise NotFound(
                f"there is no key {name!r}",
                hints=[f"did you mean {close[0]!r}?"] if close else ["`cortex keys ls` lists them"],
            )
        key = self._keyring.get(name)
        assert key is not None
        del self._created[name]
        self._update_keyring()
        event(log, "key_revoked", key=name)
        try:
            await self._storage.remove_key(name)
        except Unavailable as error:
            raise Unavailable(
                f"{error.message}; {name!r} is revoked until the gateway restarts, then valid again",
                hints=error.hints,
            ) from error
        return _view(key)

    async def usage(self, since: str, until: str) -> tuple[UsageRow, ...]:
        """Return the usage of all keys from one day to another, both included, up to now."""
        with contextlib.suppress(Unavailable):  # `run` logs it; what is saved can be read
            await self.save_usage()
        return await self._storage.usage(since, until)

    async def run(self) -> None:
        """Save the usage every few seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            await self._try_save_usage()

    async def save_usage(self) -> None:
        """Save what was counted since the last time.

        Raises:
            Unavailable: it cannot be saved; the next call tries again.
        """
        if counts := self._usage.take():
            try:
                await self._storage.add_usage(_today(), counts)
            except Unavailable:
                self._usage.put_back(counts)
                raise

    async def close(self) -> None:
        """Save the rest of the usage; a failure is logged."""
        await self._try_save_usage()

    async def _try_save_usage(self) -> None:
        try:
            await self.save_usage()
        except Exception:
            log.exception("usage_write_failed")

    def _update_keyring(self) -> None:
        before = self._keyring.protected
        self._keyring.replace(self._configured, self._created.values(), time.monotonic())
        opened = (before - self._keyring.protected) & KEYLESS_ON_THIS_HOST
        if opened:
            scopes = ",".join(sorted(opened))
            hint = (
                "programs on this host need no key for it now; create another key to prevent that"
            )
            event(log, "keyless_access_opened", logging.WARNING, scopes=scopes, hint=hint)


def _view(key: Key) -> KeyView:
    terms = key.terms.model_dump(include=set(KeyTerms.model_fields))
    return KeyView(
        **terms,
        name=key.name,
        origin="config" if key.configured else "runtime",
        created=None if key.configured else key.created,
        expired=key.expires <= time.time(),
        in_flight=key.account.in_flight,
    )


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
