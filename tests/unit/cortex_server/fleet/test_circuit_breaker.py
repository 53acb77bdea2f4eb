"""Circuit breakers and the retry budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_server.fleet.circuit_breaker import (
    FAILURE_THRESHOLD,
    OPEN_BACKOFF,
    Breaker,
    BreakerState,
    RetryBudget,
)


def test_three_failures_in_a_row_open_the_breaker():
    """Two are tolerated; the third opens it for the initial delay."""
    breaker = Breaker()
    assert [breaker.record_failure("x") for _ in range(FAILURE_THRESHOLD)] == [
        None,
        None,
        OPEN_BACKOFF.initial_s,
    ]
    assert breaker.state is BreakerState.OPEN


def test_a_success_resets_the_failures():
    """Only failures in a row count."""
    breaker = Breaker()
    for _ in range(10):
        assert breaker.record_failure("x") is None
        assert breaker.record_failure("x") is None
        assert not breaker.record_success()
    assert breaker.state is BreakerState.CLOSED


def test_a_failed_trial_doubles_the_delay_up_to_a_maximum():
    """Each failed trial doubles the delay; a successful one resets it."""
    breaker = Breaker()
    for _ in range(FAILURE_THRESHOLD):
        breaker.record_failure("x")
    pauses = []
    for _ in range(8):
        breaker.end_pause()
        assert breaker.state is BreakerState.HALF_OPEN
        pauses.append(breaker.record_failure("x"))
    assert pauses == [
        2,
        4,
        8,
        16,
        OPEN_BACKOFF.max_s,
        OPEN_BACKOFF.max_s,
        OPEN_BACKOFF.max_s,
        OPEN_BACKOFF.max_s,
    ]
    breaker.end_pause()
    assert breaker.record_success()
    assert breaker.state is BreakerState.CLOSED
    assert [breaker.record_failure("x") for _ in range(FAILURE_THRESHOLD)][
        -1
    ] == OPEN_BACKOFF.initial_s


@given(st.lists(st.sampled_from(["ok", "fail", "again"]), max_size=60))
def test_a_breaker_that_is_not_closed_has_a_reason(events):
    """In every sequence of events: closed, or open with the reason of a failure."""
    breaker = Breaker()
    for event in events:
        if event == "ok":
            breaker.record_success()
            assert breaker.state is BreakerState.CLOSED
        elif event == "fail":
            breaker.record_failure("engine gone")
        else:
            breaker.end_pause()
        if breaker.state is not BreakerState.CLOSED:
            assert breaker.reason == "engine gone"


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_a_fifth_of_the_requests_and_the_reserve(spends):
    """The budget holds for any sequence of requests and retries."""
    budget = RetryBudget()
    spent = 0
    for number, spend in enumerate(spends, start=1):
        budget.earn()
        spent += spend and budget.spend()
        assert spent <= 20 + number / 5
