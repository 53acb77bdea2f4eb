"""Usage counted in memory."""

from __future__ import annotations

from cortex_server.auth.usage import UsageCounter


def test_usage_that_could_not_be_stored_is_not_lost():
    """Usage that is put back is added to what was counted in the meantime."""
    counter = UsageCounter()
    counter.count("k", "m", 1, 2, failed=False)
    taken = counter.take()
    counter.count("k", "m", 10, 20, failed=True)
    counter.put_back(taken)
    row = counter.take()["k", "m"]
    assert (row.requests, row.errors, row.tokens_in, row.tokens_out) == (2, 1, 11, 22)
