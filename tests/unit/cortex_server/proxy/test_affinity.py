from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_common.schema.instances import InstanceId
from cortex_server.proxy.load_balancer import BLOCK_BYTES, MAX_BLOCKS, Affinity, block_hashes

ONE, TWO = InstanceId("one"), InstanceId("two")
prompts = st.binary(max_size=6).map(lambda seed: seed * 900)


@given(prompts, prompts, prompts)
def test_prompts_share_the_names_of_their_common_beginning(
    start: bytes, one: bytes, two: bytes
) -> None:
    """Whole blocks of a common beginning have the same names, whatever follows."""
    common = len(start) // BLOCK_BYTES
    assert block_hashes(start + one)[:common] == block_hashes(start + two)[:common]


def test_a_difference_changes_all_later_names() -> None:
    """A block after a difference is another block, though its own bytes are the same."""
    tail = b"x" * 3 * BLOCK_BYTES
    one = block_hashes(b"a" * BLOCK_BYTES + tail)
    two = block_hashes(b"b" * BLOCK_BYTES + tail)
    assert not set(one) & set(two)


def test_a_long_prompt_has_a_bounded_number_of_names() -> None:
    """Naming a prompt of megabytes costs no more than its first blocks."""
    assert len(block_hashes(b"x" * 10_000_000)) == MAX_BLOCKS


def test_a_conversation_is_found_where_it_was() -> None:
    """The next turn matches by the share that it has in common with the turn before."""
    affinity = Affinity()
    first = b"a" * 3 * BLOCK_BYTES
    affinity.remember(block_hashes(first), TWO)
    again = first + b"b" * BLOCK_BYTES
    assert affinity.matches(block_hashes(again), [ONE, TWO]) == {1: 0.75}
    assert affinity.matches(block_hashes(b"c" * 4096), [ONE, TWO]) == {}
    assert affinity.matches(block_hashes(again), [ONE]) == {}


def test_what_is_oldest_is_forgotten_first() -> None:
    """Beyond its bound the memory keeps what was seen last."""
    affinity = Affinity(max_blocks=2)
    affinity.remember([1], ONE)
    affinity.remember([2], ONE)
    affinity.remember([1], TWO)
    affinity.remember([3], ONE)
    assert affinity.matches([2], [ONE, TWO]) == {}
    assert affinity.matches([1], [ONE, TWO]) == {1: 1.0}
