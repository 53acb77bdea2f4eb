"""The store of recent responses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_common.schema.keys import KeyTerms
from cortex_server.auth.keys import Key
from cortex_server.proxy.response_store import OwnResponses, ResponseStore, StoredResponse


def _key(name: str, secret: str = "") -> Key:
    return Key(name, f"sha256:{secret or name}", KeyTerms())


def _turn(number: int, previous: int | None = None, size: int = 10) -> StoredResponse:
    return StoredResponse(
        id=f"resp_{number}",
        previous=None if previous is None else f"resp_{previous}",
        input=(b"i%d" % number,),
        output={f"msg_{number}": b"o%d" % number},
        body=b"x" * size,
    )


def _own(store: ResponseStore, name: str = "a") -> OwnResponses:
    return store.of(_key(name))


def test_conversation_is_all_turns_in_order() -> None:
    """Input and output of each."""
    own = _own(ResponseStore(10_000))
    own.put(_turn(1), stored=True)
    own.put(_turn(2, previous=1), stored=True)
    found = own.conversation("resp_2")
    assert found is not None
    assert [bytes(item) for item in found] == [b"i1", b"o1", b"i2", b"o2"]


def test_conversation_with_a_missing_turn_is_not_found() -> None:
    """A part of it would be another conversation."""
    own = _own(ResponseStore(10_000))
    own.put(_turn(1), stored=True)
    own.put(_turn(2, previous=1), stored=True)
    assert own.delete("resp_1")
    assert own.conversation("resp_2") is None
    assert own.item("msg_1") is None
    assert own.item("msg_2") is not None


def test_key_sees_its_own_responses_only() -> None:
    """A key that replaces another of the same name does not see what that one stored."""
    store = ResponseStore(10_000)
    own = _own(store)
    own.put(_turn(1), stored=True)
    for other in (_own(store, "b"), store.of(_key("a", "new"))):
        assert other.get("resp_1") is None
        assert other.item("msg_1") is None
        assert other.conversation("resp_1") is None
        assert not other.delete("resp_1")
    assert own.get("resp_1") is not None


def test_key_with_large_responses_takes_no_room_from_others() -> None:
    """It gets a quarter of the memory, and its least recently used responses are forgotten."""
    store = ResponseStore(4000)
    _own(store, "b").put(_turn(0, size=500), stored=True)
    own = _own(store)
    for number in range(1, 9):
        own.put(_turn(number, size=300), stored=True)
    assert [n for n in range(1, 9) if own.get(f"resp_{n}")] == [6, 7, 8]
    assert _own(store, "b").get("resp_0") is not None


def test_used_response_is_kept() -> None:
    """A conversation that continues is not forgotten."""
    own = _own(ResponseStore(4000))
    own.put(_turn(1, size=400), stored=True)
    own.put(_turn(2, size=400), stored=True)
    own.get("resp_1")
    own.put(_turn(3, size=400), stored=True)
    assert own.get("resp_1") is not None
    assert own.get("resp_2") is None


def test_number_of_responses_is_bounded() -> None:
    """However small they are."""
    own = _own(ResponseStore(1 << 30))
    for number in range(1001):
        own.put(_turn(number), stored=True)
    assert own.get("resp_0") is None
    assert own.get("resp_1") is not None


def test_response_that_is_too_large_is_not_stored() -> None:
    """It would displace everything else."""
    own = _own(ResponseStore(4000))
    own.put(_turn(1, size=400), stored=True)
    own.put(_turn(2, size=2000), stored=True)
    assert own.get("resp_1") is not None
    assert own.get("resp_2") is None


def test_lower_limit_forgets_responses() -> None:
    """A reload of the settings applies to what is stored."""
    store = ResponseStore(100_000)
    own = _own(store)
    for number in range(10):
        own.put(_turn(number, size=100), stored=True)
    store.limit(300)
    assert store.size <= 300
    store.limit(0)
    assert (store.size, store.enabled) == (0, False)


def test_unstored_response_is_kept_for_its_websocket() -> None:
    """No other request sees it, and it is forgotten with the connection."""
    store = ResponseStore(10_000)
    mine, other, plain = (store.of(_key("a"), connection) for connection in (1, 2, 0))
    mine.put(_turn(1), stored=False)
    plain.put(_turn(2), stored=False)
    assert mine.conversation("resp_1") is not None
    assert mine.item("msg_1") is not None
    for outside in (other, plain):
        assert outside.get("resp_1") is None
        assert outside.item("msg_1") is None
        assert not outside.delete("resp_1")
    assert plain.get("resp_2") is None
    mine.put(_turn(3), stored=True)
    mine.forget_connection()
    assert mine.get("resp_1") is None
    assert plain.get("resp_3") is not None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 20), st.integers(0, 400)), max_size=60
    )
)
def test_memory_is_bounded(puts: list[tuple[str, int, int]]) -> None:
    """The recorded size equals that of the stored responses, whichever key stores them."""
    store = ResponseStore(1000)
    for name, number, size in puts:
        _own(store, name).put(_turn(number, size=size), stored=True)
        assert store.size <= 1000
    found = [_own(store, name).get(f"resp_{n}") for name in "abcdef" for n in range(21)]
    assert store.size == sum(turn.size for turn in found if turn is not None)
