"""Keys created at run time, and the usage of all keys, in the database."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cortex_common.errors import Unavailable
from cortex_common.schema.keys import CreateKeyRequest, KeyLimits, KeyTerms
from cortex_server.auth.key_service import KeyService
from cortex_server.auth.keys import Keyring, RuntimeKey, hash_of, new_secret
from cortex_server.auth.usage import UsageCounter
from cortex_server.storage.database import Database
from cortex_server.storage.keys import KeyStore


async def test_keys_and_usage_outlive_the_gateway(tmp_path: Path):
    """They are there when the file is opened again, and usage of the same day adds up."""
    usage = UsageCounter()
    for day, tokens in (("2026-01-01", 5), ("2026-01-01", 7), ("2026-01-02", 1)):
        with closing(Database(tmp_path / "x.sqlite")) as database:
            usage.count("k", "m", tokens, 2 * tokens, failed=tokens == 7)
            await KeyStore(database).add_usage(day, usage.take())
    terms = KeyTerms(limits=KeyLimits(max_in_flight=2), expires="2030-01-01")
    with closing(Database(tmp_path / "x.sqlite")) as database:
        await KeyStore(database).add_key(RuntimeKey("k", hash_of("s"), terms, 7.0))
    with closing(Database(tmp_path / "x.sqlite")) as database:
        store = KeyStore(database)
        assert [(k.name, k.terms, k.created) for k in store.load_keys()] == [("k", terms, 7.0)]
        rows = await store.usage("2026-01-01", "2026-01-01")
        assert [(r.requests, r.errors, r.tokens_in, r.tokens_out) for r in rows] == [(2, 1, 12, 24)]
        assert len(await store.usage("0000", "9999")) == 2


async def test_usage_that_cannot_be_saved_is_kept(tmp_path: Path):
    """What is saved can be read, the rest is saved as soon as that is possible, and shutdown succeeds."""
    usage = UsageCounter()
    with closing(Database(tmp_path / "x.sqlite")) as database:
        key_service = KeyService(Keyring(), usage, KeyStore(database), ())
        usage.count("k", "m", 1, 1, failed=False)
        assert len(await key_service.usage("0000", "9999")) == 1
        usage.count("k", "m", 1, 1, failed=False)
        with closing(sqlite3.connect(tmp_path / "x.sqlite")) as other:
            other.execute(
                "create trigger full before insert on usage begin select raise(abort, 'full'); end"
            )
            assert [r.requests for r in await key_service.usage("0000", "9999")] == [1]
            await key_service.close()
            other.execute("drop trigger full")
        assert [r.requests for r in await key_service.usage("0000", "9999")] == [2]


async def test_a_key_that_cannot_be_saved_is_not_created(tmp_path: Path):
    """The error says so, and the name can be used again later."""
    with closing(Database(tmp_path / "x.sqlite")) as database:
        key_service = KeyService(Keyring(), UsageCounter(), KeyStore(database), ())
        with closing(sqlite3.connect(tmp_path / "x.sqlite")) as other:
            other.execute("alter table keys rename to away")
            with pytest.raises(Unavailable, match="cannot be saved"):
                await key_service.create(CreateKeyRequest(name="k"))
            assert key_service.keys() == ()
            other.execute("alter table away rename to keys")
        assert (await key_service.create(CreateKeyRequest(name="k"))).key.name == "k"


async def test_a_revocation_that_cannot_be_saved_is_reported(tmp_path: Path):
    """The key is invalid, and the error says that it will be valid again after a restart."""
    with closing(Database(tmp_path / "x.sqlite")) as database:
        key_service = KeyService(Keyring(), UsageCounter(), KeyStore(database), ())
        await key_service.create(CreateKeyRequest(name="k"))
        with closing(sqlite3.connect(tmp_path / "x.sqlite")) as other:
            other.execute("alter table keys rename to away")
            with pytest.raises(Unavailable, match="until the gateway restarts"):
                await key_service.revoke("k")
        assert key_service.keys() == ()


def test_secrets_are_long_and_not_stored(tmp_path: Path):
    """A secret has 256 random bits, and the files contain only its hash."""
    secret = new_secret()
    assert len(secret) >= 43
    key = RuntimeKey("k", hash_of(secret), KeyTerms(), 7.0)
    with closing(Database(tmp_path / "x.sqlite")) as database:
        asyncio.run(KeyStore(database).add_key(key))
        assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())
