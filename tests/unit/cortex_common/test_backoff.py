"""Exponential back-off."""

from __future__ import annotations

from cortex_common.backoff import Backoff


def test_the_delay_doubles_up_to_the_maximum() -> None:
    """The first failure waits the initial delay; every further one twice as long, up to `max_s`."""
    backoff = Backoff(initial_s=0.5, max_s=3.0)
    assert [backoff.delay_s(n) for n in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_scales_every_delay() -> None:
    """The injected factor applies to capped delays too."""
    backoff = Backoff(initial_s=1.0, max_s=4.0, jitter=lambda: 0.75)
    assert [backoff.delay_s(n) for n in (1, 2, 9)] == [0.75, 1.5, 3.0]


def test_many_failures_do_not_overflow() -> None:
    """A peer that has been away for months still yields the maximum."""
    assert Backoff(initial_s=1.0, max_s=30.0).delay_s(10**6) == 30.0
