from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.config.access import KeyEntry, KeyLimits, KeyTerms, LimitsSection, Scope
from cortex_common.errors import (
    AuthenticationFailed,
    Busy,
    CortexError,
    PermissionRefused,
    Unavailable,
)
from cortex_common.schema.keys import CreateKey
from cortex_server.auth.access_control import INFER, AccessControl, is_loopback, is_own
from cortex_server.auth.admission_queue import FairQueue
from cortex_server.auth.key_service import KeyService
from cortex_server.auth.keys import Key, Keyring, MadeKey, TokenBucket, hash_of, new_secret
from cortex_server.auth.permissions import RULES, matrix, rule_for
from cortex_server.auth.usage import Usage
from cortex_server.proxy.routes import ROUTES
from cortex_server.storage.keys import KeyStore

OPERATE = frozenset({Scope.OPERATOR})
DOCS = Path(__file__).parents[4] / "docs" / "reference" / "scopes.md"


def entry(name: str, secret: str, **terms: object) -> KeyEntry:
    """A key of cortex.toml."""
    return KeyEntry.model_validate({"name": name, "hash": hash_of(secret)} | terms)


def access_control(*keys: KeyEntry, insecure: bool = False) -> AccessControl:
    """A gate with these keys."""
    ring = Keyring()
    ring.use(keys, (), 0.0)
    return AccessControl(ring, insecure=insecure)


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    """The header that carries it."""
    return [(b"authorization", b"Bearer " + secret.encode())]


def test_either_credential_header_being_right_is_enough():
    """A stale bearer token beside a good x-api-key opens, and the other way round."""
    guarded = access_control(entry("a", "good"))
    for headers in (
        [(b"authorization", b"Bearer stale"), (b"x-api-key", b"good")],
        [(b"x-api-key", b"stale"), (b"authorization", b"bearer good")],
    ):
        assert guarded.check(headers, INFER, own=False).name == "a"


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
def test_what_is_not_the_secret_opens_nothing(headers):
    """Neither no credential, nor another, nor the right one in the wrong place."""
    with pytest.raises(AuthenticationFailed):
        access_control(entry("a", "good")).check(headers, INFER, own=True)


def test_an_expired_key_opens_nothing_and_still_guards():
    """After its end a key is refused by name, and this host is not let in again because of that."""
    guarded = access_control(entry("a", "good", expires="2001-01-01"))
    with pytest.raises(AuthenticationFailed, match="'a' ended at 2001-01-01"):
        guarded.check(bearer("good"), INFER, own=True)
    with pytest.raises(AuthenticationFailed):
        guarded.check([], INFER, own=True)


def test_a_key_without_the_scope_is_told_which_it_has():
    """403 names the scope that lacks."""
    with pytest.raises(PermissionRefused, match="lacks the scope operator; it has infer"):
        access_control(entry("a", "s"), entry("o", "t", scopes=["operator"])).check(
            bearer("s"), OPERATE, own=True
        )


def test_without_keys_only_this_host_is_served():
    """Loopback passes; another host and what a proxy passes on do not, and are told how to open it."""
    free = access_control()
    assert free.check([], INFER, own=True).name == "anybody"
    assert free.check(bearer("none"), OPERATE, own=True).name == "anybody"
    for headers, peer in (([], "10.0.0.1"), ([(b"x-forwarded-for", b"10.0.0.1")], "127.0.0.1")):
        with pytest.raises(AuthenticationFailed) as caught:
            free.check(headers, INFER, own=is_own(peer, headers))
        assert "--insecure" in " ".join(caught.value.hints)


def test_insecure_opens_inference_but_never_the_operator_api():
    """Another host may ask models, and may not operate."""
    free = access_control(insecure=True)
    assert free.check([], INFER, own=False).name == "anybody"
    with pytest.raises(AuthenticationFailed):
        free.check([], OPERATE, own=False)


def test_a_key_for_inference_does_not_lock_the_operator_out():
    """Each scope is guarded from its first key on, and not before."""
    guarded = access_control(entry("a", "s"))
    assert guarded.check([], OPERATE, own=True).name == "anybody"


def test_insecure_still_counts_for_the_key_that_is_sent():
    """Who sends a key is that key, also where none is needed."""
    assert (
        access_control(entry("a", "s"), insecure=True).check(bearer("s"), INFER, own=False).name
        == "a"
    )


@pytest.mark.parametrize(
    ("peer", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True)]
    + [
        (p, False)
        for p in ("10.0.0.1", "128.0.0.1", "::2", "", None, "localhost", "::ffff:10.0.0.1")
    ],
)
def test_loopback_is_known(peer, own):
    """Only addresses of this host count as its own."""
    assert is_loopback(peer) is own


@pytest.mark.parametrize(
    ("name", "value", "own"),
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
def test_a_web_page_from_elsewhere_is_not_this_host(name, value, own):
    """Foreign origins, public names for this address, and proxies do not pass for the own host."""
    assert is_own("127.0.0.1", [(name, value)]) is own


def test_models_are_names_or_patterns():
    """A pattern allows what it matches, by id or alias; none allows all."""
    terms = KeyTerms(models=("Qwen/*", "gpt-4"))
    key = Key("k", hash_of("s"), terms)
    assert key.allows("Qwen/Qwen3")
    assert key.allows("other", "gpt-4")
    assert not key.allows("qwen/Qwen3")
    assert Key("k", hash_of("s"), KeyTerms()).allows("anything")


def test_a_reload_keeps_what_a_key_used():
    """New terms apply to the same account; a limit that did not change goes on as it stands."""
    ring = Keyring()
    ring.use([entry("a", "s", limits={"requests_per_minute": 5})], (), 0.0)
    key = ring.named("a")
    key.account.in_flight = 3
    bucket = key.account.requests
    ring.use([entry("a", "t", limits={"requests_per_minute": 5, "max_in_flight": 4})], (), 9.0)
    again = ring.named("a")
    assert again.account.in_flight == 3
    assert again.account.requests is bucket
    assert again.account.limits.max_in_flight == 4
    assert ring.find(b"s") is None
    assert ring.find(b"t") is again


def test_the_configuration_hides_a_made_key_of_the_same_name():
    """Of two keys with one name the one in cortex.toml counts."""
    ring = Keyring()
    ring.use([entry("a", "s")], [MadeKey("a", hash_of("t"), KeyTerms(), 1.0)], 0.0)
    assert ring.find(b"t") is None
    assert ring.find(b"s").configured


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_a_bucket_never_gives_more_than_it_promises(per_minute, asks):
    """In t minutes at most 1 + t minutes' worth is given, and a wait that is told is enough."""
    bucket = TokenBucket(per_minute, 0.0)
    now = given_out = 0.0
    for pause, amount in asks:
        now += pause
        wait = bucket.wait(amount, now)
        if wait == 0:
            bucket.take(amount)
            given_out += amount
        elif amount <= per_minute:
            assert bucket.wait(amount, now + wait + 1e-6) == 0
            now += wait + 1e-6
    assert given_out <= per_minute * (1 + now / 60) + 1e-3


def test_requests_a_minute_are_bounded_and_the_wait_is_told():
    """The third of two a minute is refused with the seconds until the next."""
    guarded = access_control(entry("a", "s", limits={"requests_per_minute": 2}))
    for _ in range(2):
        guarded.leave(guarded.enter(bearer("s"), own=False), "m", 1, 1, failed=False)
    with pytest.raises(Busy) as caught:
        guarded.enter(bearer("s"), own=False)
    assert caught.value.code == "rate_limited"
    assert 25 < caught.value.retry_after <= 30


def test_tokens_a_minute_are_counted_when_they_are_known():
    """An answer that overdraws the minute is whole; the next request waits for the debt."""
    guarded = access_control(entry("a", "s", limits={"tokens_per_minute": 100}))
    guarded.leave(guarded.enter(bearer("s"), own=False), "m", 100, 100, failed=False)
    with pytest.raises(Busy) as caught:
        guarded.enter(bearer("s"), own=False)
    assert 55 < caught.value.retry_after <= 61


def test_requests_at_once_are_bounded():
    """A place is free again when a request leaves."""
    guarded = access_control(entry("a", "s", limits={"max_in_flight": 1}))
    key = guarded.enter(bearer("s"), own=False)
    with pytest.raises(Busy):
        guarded.enter(bearer("s"), own=False)
    guarded.leave(key, "m", 0, 0, failed=True)
    guarded.enter(bearer("s"), own=False)


class Guest:
    """Somebody at the turnstile."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def admitted(self) -> None:
        self.log.append(self.name)

    def turned_away(self) -> None:
        self.log.append(f"-{self.name}")


def key_of(name: str, **terms: object) -> Key:
    """A key to queue with."""
    return Key(name, hash_of(name), KeyTerms.model_validate(terms))


async def served(*queue: tuple[Key, int], most: int = 1) -> str:
    """The order in which those who queue behind one guest are let in, by the names of their keys."""
    log: list[str] = []
    admission = FairQueue(asyncio.get_running_loop(), LimitsSection(max_in_flight=most))
    first = Guest("first", log)
    assert admission.enter(first, key_of("z"), 0)
    guests = [(Guest(key.name, log), key, priority) for key, priority in queue]
    for guest, key, priority in guests:
        assert not admission.enter(guest, key, priority)
    admission.leave(first)
    while admission.waiting or len(log) < len(queue):
        await asyncio.sleep(0)
        if admission.inside:
            admission.leave(next(g for g, _, _ in guests if g in admission._inside))
    return "".join(log)


async def test_a_key_that_floods_the_queue_delays_another_by_one_place():
    """Keys take turns."""
    a, b = key_of("a"), key_of("b")
    assert (await served(*[(a, 0)] * 5, (b, 0), (b, 0))).startswith("ab")


async def test_weights_are_shares():
    """A key with weight 3 goes three times as often."""
    a, b = key_of("a", weight=3), key_of("b")
    order = await served(*[(a, 0)] * 9, *[(b, 0)] * 9)
    assert order[:8].count("a") == 6


async def test_priority_is_capped_by_the_key():
    """Whoever may, goes first; whoever may not, gains nothing by asking."""
    a, b = key_of("a"), key_of("b", max_priority=2)
    assert await served((a, 9), (a, 9), (b, 2)) == "baa"


async def test_a_guest_that_left_the_queue_is_not_called():
    """Its place goes to the next."""
    log: list[str] = []
    admission = FairQueue(asyncio.get_running_loop(), LimitsSection(max_in_flight=1))
    first, second, third = (Guest(n, log) for n in ("1", "2", "3"))
    key = key_of("a")
    admission.enter(first, key, 0)
    admission.enter(second, key, 0)
    admission.enter(third, key, 0)
    admission.leave(second)
    admission.leave(first)
    await asyncio.sleep(0)
    assert log == ["3"]


async def test_the_queue_is_bounded_in_length_and_time():
    """One too many is refused at once; one that waits too long is turned away."""
    log: list[str] = []
    limits = LimitsSection(max_in_flight=1, max_queued=1, queue_timeout_s=0.01)
    admission = FairQueue(asyncio.get_running_loop(), limits)
    key = key_of("a")
    admission.enter(Guest("1", log), key, 0)
    admission.enter(Guest("2", log), key, 0)
    with pytest.raises(Busy):
        admission.enter(Guest("3", log), key, 0)
    async with asyncio.timeout(5):
        while not log:
            await asyncio.sleep(0.001)
    assert log == ["-2"]
    assert admission.waiting == 0


def test_records_outlast_the_gateway(tmp_path: Path):
    """Keys and usage are there again when the file is opened anew, and usage adds up."""
    usage = Usage()
    for day, tokens in (("2026-01-01", 5), ("2026-01-01", 7), ("2026-01-02", 1)):
        records = KeyStore(tmp_path / "x.sqlite")
        usage.count("k", "m", tokens, 2 * tokens, failed=tokens == 7)
        records.add_usage(day, usage.taken())
        records.close()
    records = KeyStore(tmp_path / "x.sqlite")
    terms = KeyTerms(limits=KeyLimits(max_in_flight=2), expires="2030-01-01")
    records.add_key(MadeKey("k", hash_of("s"), terms, 7.0))
    records.close()
    records = KeyStore(tmp_path / "x.sqlite")
    assert [(k.name, k.terms, k.created) for k in records.made_keys()] == [("k", terms, 7.0)]
    found = records.usage("2026-01-01", "2026-01-01")
    assert [(r.requests, r.errors, r.tokens_in, r.tokens_out) for r in found] == [(2, 1, 12, 24)]
    assert len(records.usage("0000", "9999")) == 2
    records.close()


async def test_usage_that_can_not_be_written_down_stops_nothing(tmp_path: Path):
    """What was written can be read, and the gateway ends as it should."""
    usage, records = Usage(), KeyStore(tmp_path / "x.sqlite")
    key_service = KeyService(Keyring(), usage, records, ())
    usage.count("k", "m", 1, 1, failed=False)
    assert len(await key_service.usage("0000", "9999")) == 1
    usage.count("k", "m", 1, 1, failed=False)
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as other:
        other.execute(
            "create trigger full before insert on usage begin select raise(abort, 'full'); end"
        )
    assert len(await key_service.usage("0000", "9999")) == 1
    key_service.close()


async def test_a_key_that_can_not_be_written_down_is_not_made(tmp_path: Path):
    """A full disk is told as such, and the name is free again once there is room."""
    records = KeyStore(tmp_path / "x.sqlite")
    key_service = KeyService(Keyring(), Usage(), records, ())
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as other:
        other.execute("alter table keys rename to away")
        with pytest.raises(Unavailable, match="can't be written down"):
            await key_service.create(CreateKey(name="k"))
        assert key_service.keys() == ()
        other.execute("alter table away rename to keys")
    assert (await key_service.create(CreateKey(name="k"))).key.name == "k"
    records.close()


def test_secrets_are_long_and_their_files_hold_none(tmp_path: Path):
    """256 random bits; the records keep a hash."""
    secret = new_secret()
    assert len(secret) >= 43
    records = KeyStore(tmp_path / "x.sqlite")
    records.add_key(MadeKey("k", hash_of(secret), KeyTerms(), 7.0))
    records.close()
    assert all(secret.encode() not in p.read_bytes() for p in tmp_path.iterdir())


def test_everything_is_covered_by_a_rule():
    """The last rule covers what no other does, and asks for the operator's scope."""
    assert rule_for("POST", "/anything/../new").scopes == OPERATE
    assert RULES[-1].prefix == "/"


@pytest.mark.parametrize("path", [route.path for route in ROUTES.values()])
def test_inference_asks_for_its_scope(path):
    """Each inference route is opened by the scope infer and by no other."""
    assert rule_for("POST", path).scopes == INFER


@pytest.mark.parametrize("path", ["/healthz", "/health/", "/readyx", "//health", "/metrics/x"])
def test_open_paths_open_nothing_beside_them(path):
    """Only the exact paths of the probes and the metrics have rules of their own."""
    assert rule_for("GET", path).scopes == OPERATE


def test_the_page_on_scopes_is_the_table():
    """docs/reference/scopes.md holds what is enforced (write it anew when this fails)."""
    assert matrix() in DOCS.read_text(encoding="utf-8")


def test_problems_are_cortex_errors():
    """Whatever bytes come, the answer is an error of the tree, never another exception."""
    guarded = access_control(entry("a", "s"))
    for value in (b"\xff\xfe", b"Bearer ", b"bearer \x00", b"Bearer " + b"x" * 100_000):
        with pytest.raises(CortexError):
            guarded.check([(b"authorization", value)], INFER, own=False)
