"""Keys, their token buckets, and the keyring."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_common.config.access import KeyEntry
from cortex_common.schema.keys import KeyTerms
from cortex_server.auth.keys import Key, Keyring, RuntimeKey, TokenBucket, hash_of


def entry(name: str, secret: str, **terms: object) -> KeyEntry:
    """Return a key as in cortex.toml."""
    return KeyEntry.model_validate({"name": name, "hash": hash_of(secret)} | terms)


def test_models_are_names_or_patterns():
    """A pattern allows what it matches, by id or alias; a key without models allows all."""
    terms = KeyTerms(models=("Qwen/*", "gpt-4"))
    key = Key("k", hash_of("s"), terms)
    assert key.allows_model("Qwen/Qwen3")
    assert key.allows_model("other", "gpt-4")
    assert not key.allows_model("qwen/Qwen3")
    assert Key("k", hash_of("s"), KeyTerms()).allows_model("anything")


def test_a_reload_keeps_the_account_of_a_key():
    """New terms apply to the same account, and a limit that did not change keeps its bucket."""
    keyring = Keyring()
    keyring.replace([entry("a", "s", limits={"requests_per_minute": 5})], (), 0.0)
    key = keyring.get("a")
    key.account.in_flight = 3
    bucket = key.account.requests
    limits = {"requests_per_minute": 5, "max_in_flight": 4}
    keyring.replace([entry("a", "t", limits=limits)], (), 9.0)
    reloaded = keyring.get("a")
    assert reloaded.account.in_flight == 3
    assert reloaded.account.requests is bucket
    assert reloaded.account.limits.max_in_flight == 4
    assert keyring.find(b"s") is None
    assert keyring.find(b"t") is reloaded


def test_the_configuration_hides_a_runtime_key_of_the_same_name():
    """Of two keys with one name the one in cortex.toml is used."""
    keyring = Keyring()
    keyring.replace([entry("a", "s")], [RuntimeKey("a", hash_of("t"), KeyTerms(), 1.0)], 0.0)
    assert keyring.find(b"t") is None
    assert keyring.find(b"s").configured


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_a_bucket_never_exceeds_its_rate(per_minute, requests):
    """In t minutes at most 1 + t minutes' worth is taken, and after the reported wait it is available."""
    bucket = TokenBucket(per_minute, 0.0)
    now = taken = 0.0
    for pause, amount in requests:
        now += pause
        wait = bucket.wait(amount, now)
        if wait == 0:
            bucket.take(amount)
            taken += amount
        elif amount <= per_minute:
            assert bucket.wait(amount, now + wait + 1e-6) == 0
            now += wait + 1e-6
    assert taken <= per_minute * (1 + now / 60) + 1e-3
