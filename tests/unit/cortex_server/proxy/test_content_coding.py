"""Compressed answers."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import UpstreamFailed
from cortex_server.proxy.response import content_coding
from cortex_server.proxy.response.content_coding import find_decoder

RAW = zlib.compressobj(wbits=-15)
TEXT = b"the same text again, " * 40
CODED = {
    b"gzip": gzip.compress(TEXT),
    b"x-gzip": gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),
    b"deflate": zlib.compress(TEXT),
    b"Deflate ": RAW.compress(TEXT) + RAW.flush(),
}


@pytest.mark.parametrize("coding", CODED)
@given(cuts=st.lists(st.integers(1, 60), max_size=5))
def test_a_compressed_body_is_decoded_however_it_is_cut(coding: bytes, cuts: list[int]) -> None:
    """With and without zlib's header, and in several members."""
    decoder = find_decoder([(b"content-encoding", coding)])
    assert decoder is not None
    data = CODED[coding]
    edges = sorted({0, len(data), *cuts})
    got = b"".join(decoder.decode(data[a:b]) for a, b in itertools.pairwise(edges))
    decoder.end()
    assert got == TEXT


@pytest.mark.parametrize("value", [b"", b"identity", b" identity , "])
def test_a_plain_body_needs_no_decoder(value: bytes) -> None:
    """The header may be there all the same."""
    assert find_decoder([(b"content-encoding", value)]) is None
    assert find_decoder([]) is None


@pytest.mark.parametrize("value", [b"br", b"zstd", b"gzip, br"])
def test_other_codings_are_named(value: bytes) -> None:
    """They are not in the standard library, and were not asked for."""
    with pytest.raises(UpstreamFailed, match="compressed its answer"):
        find_decoder([(b"content-encoding", value)])


def test_damaged_and_cut_bodies_are_errors() -> None:
    """Half of an answer is not passed off as a whole one."""
    cut = find_decoder([(b"content-encoding", b"gzip")])
    assert cut is not None
    cut.decode(CODED[b"gzip"][:-9])
    with pytest.raises(UpstreamFailed, match="incomplete"):
        cut.end()
    damaged = find_decoder([(b"content-encoding", b"gzip")])
    assert damaged is not None
    with pytest.raises(UpstreamFailed, match="damaged"):
        damaged.decode(b"\x00\xff" * 40)


def test_a_bomb_is_not_inflated() -> None:
    """One read of the socket expands to a bounded size."""
    decoder = find_decoder([(b"content-encoding", b"gzip")])
    assert decoder is not None
    with pytest.raises(UpstreamFailed, match="expands too much"):
        decoder.decode(gzip.compress(bytes(content_coding.MAX_DECODED + 1)))
