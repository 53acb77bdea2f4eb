"""The pauses between keep-alive comments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_server.proxy.keep_alive import keep_alive_pause

GO_OPENAI_COMMENTS = 150
PROXY_TIMEOUT_S = 60.0


@given(st.floats(min_value=0.01, max_value=600))
def test_an_hour_of_comments_stays_below_the_limit_of_go_openai(first_s: float) -> None:
    """However short the configured pause is."""
    elapsed, sent = 0.0, 0
    while (elapsed := elapsed + keep_alive_pause(first_s, sent)) <= 3600:
        sent += 1
    assert sent < GO_OPENAI_COMMENTS


@given(st.floats(min_value=0.01, max_value=600), st.integers(min_value=0, max_value=10**6))
def test_pauses_stay_below_the_timeout_of_proxies(first_s: float, sent: int) -> None:
    """Unless the operator configured a longer one."""
    assert first_s <= keep_alive_pause(first_s, sent) < max(PROXY_TIMEOUT_S, first_s + 1)


def test_the_first_pause_is_the_configured_one() -> None:
    """Growth begins with the second."""
    assert keep_alive_pause(5.0, 0) == 5.0
    assert keep_alive_pause(5.0, 1) > 5.0
