"""When an instance that fails is left alone, and tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_server.fleet.circuit_breaker import (
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Breaker,
    BreakerState,
    RetryBudget,
)


def test_three_failures_in_a_row_open_it():
    """Two are forgiven, the third opens for the first pause."""
    breaker = Breaker()
    assert [breaker.failed("x") for _ in range(FAILURES)] == [None, None, FIRST_PAUSE_S]
    assert breaker.standing is BreakerState.OPEN


def test_a_success_between_failures_forgives_them():
    """Only failures in a row count."""
    breaker = Breaker()
    for _ in range(10):
        assert breaker.failed("x") is None
        assert breaker.failed("x") is None
        assert not breaker.succeeded()
    assert breaker.standing is BreakerState.CLOSED


def test_a_failed_trial_doubles_the_pause_up_to_a_limit():
    """Each trial that fails keeps the instance away for longer; one that succeeds forgives everything."""
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed("x")
    pauses = []
    for _ in range(8):
        breaker.try_again()
        assert breaker.standing is BreakerState.ON_TRIAL
        pauses.append(breaker.failed("x"))
    assert pauses == [
        2,
        4,
        8,
        16,
        LONGEST_PAUSE_S,
        LONGEST_PAUSE_S,
        LONGEST_PAUSE_S,
        LONGEST_PAUSE_S,
    ]
    breaker.try_again()
    assert breaker.succeeded()
    assert breaker.standing is BreakerState.CLOSED
    assert [breaker.failed("x") for _ in range(FAILURES)][-1] == FIRST_PAUSE_S


@given(st.lists(st.sampled_from(["ok", "fail", "again"]), max_size=60))
def test_it_is_open_only_after_failures_and_always_knows_why(events):
    """Whatever happens: closed with no reason held against it, or away with the reason of a failure."""
    breaker = Breaker()
    for event in events:
        if event == "ok":
            breaker.succeeded()
            assert breaker.standing is BreakerState.CLOSED
        elif event == "fail":
            breaker.failed("engine gone")
        else:
            breaker.try_again()
        if breaker.standing is not BreakerState.CLOSED:
            assert breaker.reason == "engine gone"


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_a_fifth_of_the_requests_and_the_reserve(spends):
    """However requests and retries alternate, the budget holds."""
    budget = RetryBudget()
    spent = 0
    for number, spend in enumerate(spends, start=1):
        budget.earn()
        spent += spend and budget.spend()
        assert spent <= 20 + number / 5
