"""Makes, lists and revokes keys, and keeps the usage book."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from cortex_common.config.access import KeyEntry, KeyTerms
from cortex_common.errors import Conflict, NotFound, Unavailable, nearest
from cortex_common.log import event
from cortex_common.schema.keys import CreatedKey, CreateKey, KeyView, UsageRow
from cortex_server.auth.keys import ANYBODY, Key, Keyring, MadeKey, hash_of, new_secret
from cortex_server.auth.usage import Usage
from cortex_server.storage.keys import KeyStore

log = logging.getLogger("cortex.keys")

WRITE_EVERY_S = 5.0
"""What a crash of the gateway may lose of the usage."""


class KeyService:
    """See the module.

    Args:
        keyring: kept in line with the configuration and the records.
        usage: what is written down now and then.
        records: where made keys and usage are kept.
        configured: the keys of cortex.toml.
    """

    def __init__(
        self, keyring: Keyring, usage: Usage, records: KeyStore, configured: Iterable[KeyEntry]
    ) -> None:
        self._ring = keyring
        self._usage = usage
        self._records = records
        self._configured = tuple(configured)
        self._made = {key.name: key for key in records.made_keys()}
        self._apply()

    def configure(self, keys: Iterable[KeyEntry]) -> None:
        """Take over the keys of a new configuration."""
        self._configured = tuple(keys)
        self._apply()

    def keys(self) -> tuple[KeyView, ...]:
        """All keys, by name."""
        return tuple(map(self._view, self._ring.keys))

    async def create(self, wish: CreateKey) -> CreatedKey:
        """Make a key.

        Raises:
            Conflict: there is one of that name.
            Unavailable: it can't be written down; there is no such key then.
        """
        if wish.name == ANYBODY or self._ring.named(wish.name) or wish.name in self._made:
            raise Conflict(
                f"there is a key {wish.name!r} already",
                hints=["revoke it first, or choose another name"],
            )
        secret = new_secret()
        terms = KeyTerms.model_validate(wish.model_dump(exclude={"name"}))
        made = MadeKey(wish.name, hash_of(secret), terms, time.time())
        # Before the first await, so that a second wish for the same name finds it taken.
        self._made[made.name] = made
        try:
            await asyncio.to_thread(self._records.add_key, made)
        except BaseException:
            del self._made[made.name]
            raise
        self._apply()
        event(log, "key_created", key=made.name, scopes=",".join(terms.scopes))
        key = self._ring.named(made.name)
        assert key is not None
        return CreatedKey(secret=secret, key=self._view(key))

    async def revoke(self, name: str) -> KeyView:
        """End a key at once; requests that it has under way go on.

        Raises:
            NotFound: there is no such key.
            Conflict: it stands in cortex.toml.
            Unavailable: that can't be written down; it has ended, and would be back with the next start.
        """
        if any(entry.name == name for entry in self._configured):
            raise Conflict(
                f"key {name!r} stands in cortex.toml",
                hints=["remove it there, then `cortex config reload`"],
            )
        if name not in self._made:
            close = nearest(name, self._made)
            raise NotFound(
                f"there is no key {name!r}",
                hints=[f"did you mean {close[0]!r}?"] if close else ["`cortex keys ls` lists them"],
            )
        key = self._ring.named(name)
        assert key is not None
        del self._made[name]
        self._apply()
        event(log, "key_revoked", key=name)
        try:
            await asyncio.to_thread(self._records.remove_key, name)
        except Unavailable as failed:
            failed.message += f"; {name!r} has ended, and comes back when the gateway starts anew"
            raise
        return self._view(key)

    async def usage(self, since: str, until: str) -> tuple[UsageRow, ...]:
        """What keys used from one day to another, both included, up to now."""
        with contextlib.suppress(sqlite3.Error):  # told by `run`; what was written can be read
            await self.write_usage()
        return await asyncio.to_thread(self._records.usage, since, until)

    async def run(self) -> None:
        """Write the usage down every few seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.write_usage()
            except Exception:
                log.exception("usage_not_written")

    async def write_usage(self) -> None:
        """Write down what was counted since the last time."""
        if used := self._usage.taken():
            try:
                await asyncio.to_thread(self._records.add_usage, _today(), used)
            except sqlite3.Error:
                self._usage.put_back(used)
                raise

    def close(self) -> None:
        """Write down the rest and close the records."""
        if used := self._usage.taken():
            try:
                self._records.add_usage(_today(), used)
            except sqlite3.Error:
                log.exception("usage_not_written")
        self._records.close()

    def _view(self, key: Key) -> KeyView:
        terms = key.terms.model_dump(include=set(KeyTerms.model_fields))
        return KeyView(
            **terms,
            name=key.name,
            origin="config" if key.configured else "made",
            created=None if key.configured else key.created,
            expired=key.expires <= time.time(),
            in_flight=key.account.in_flight,
        )

    def _apply(self) -> None:
        self._ring.use(self._configured, self._made.values(), time.monotonic())


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
