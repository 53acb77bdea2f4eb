"""Detection of pauses of the process."""

from __future__ import annotations

from cortex_http.pauses import PauseDetector


def test_a_late_call_shows_how_long_the_process_stood_still():
    """Some delay is ordinary; more is a pause, which counts once."""
    times = iter([0.0, 1.0, 3.5, 64.5, 65.5])
    detector = PauseDetector(1.0, lambda: next(times))
    assert [detector.tick() for _ in range(4)] == [0.0, 0.0, 60.0, 0.0]
