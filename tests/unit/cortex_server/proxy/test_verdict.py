"""Whose fault an unusable answer is, and what follows from it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cortex_common.errors import PromptTooLong, UpstreamFailed, UpstreamTimeout
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.proxy.response.verdict import (
    CHAT,
    Fault,
    find_fault,
    retry_after_s,
)


@pytest.mark.parametrize(
    ("status", "body", "path", "fault"),
    [
        (400, b"", CHAT, Fault.CLIENT),
        (401, b"", CHAT, Fault.ACCOUNT),
        (402, b"Insufficient Balance", CHAT, Fault.ACCOUNT),
        (403, b"country not supported", CHAT, Fault.ACCOUNT),
        (403, b"Your input was flagged by moderation", CHAT, Fault.CLIENT),
        (404, b"The model `m` does not exist.", CHAT, Fault.ACCOUNT),
        (404, b"Not Found", CHAT, Fault.ACCOUNT),
        (404, b"Not Found", "/v1/rerank", Fault.FEATURE),
        (404, b'{"error":{"message":"model m not found"}}', "/v1/embeddings", Fault.ACCOUNT),
        (405, b"", "/v1/rerank", Fault.FEATURE),
        (407, b"", CHAT, Fault.ENGINE),
        (408, b"", CHAT, Fault.ENGINE),
        (409, b"", CHAT, Fault.CLIENT),
        (413, b"", CHAT, Fault.CLIENT),
        (422, b"", CHAT, Fault.CLIENT),
        (425, b"", CHAT, Fault.BUSY),
        (429, b"slow down", CHAT, Fault.BUSY),
        (429, b"You exceeded your current quota, please check your plan", CHAT, Fault.ACCOUNT),
        (500, b"", CHAT, Fault.ENGINE),
        (500, b"image input is not supported", CHAT, Fault.CLIENT),
        (500, b"the request exceeds the available context size", CHAT, Fault.CLIENT),
        (501, b"", CHAT, Fault.FEATURE),
        (502, b"", CHAT, Fault.ENGINE),
        (503, b"", CHAT, Fault.BUSY),
        (504, b"", CHAT, Fault.ENGINE),
        (524, b"", CHAT, Fault.ENGINE),
        (529, b"", CHAT, Fault.BUSY),
        (999, b"", CHAT, Fault.ENGINE),
    ],
)
def test_each_status_has_its_fault(status: int, body: bytes, path: str, fault: Fault) -> None:
    """The table, with the messages that make an exception."""
    assert find_fault(error_from_response(status, body), path, status) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UpstreamFailed("gone"), Fault.ENGINE),
        (UpstreamTimeout("silent"), Fault.ENGINE),
        (PromptTooLong("too long"), Fault.CLIENT),
    ],
)
def test_errors_of_the_proxy_have_a_fault_too(error: UpstreamFailed, fault: Fault) -> None:
    """Lost connections count as the engine's fault."""
    assert find_fault(error, CHAT) is fault


def test_only_faults_of_the_server_are_retried() -> None:
    """What the client or the gateway did wrong would be wrong anywhere."""
    assert {fault for fault in Fault if not fault.is_retryable} == {Fault.CLIENT, Fault.GATEWAY}
    assert {fault for fault in Fault if fault.is_failure} == {Fault.ENGINE, Fault.ACCOUNT}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after", b" 7 ")], 7.0),
        ([(b"retry-after", b"Tue, 01 Dec 2026 12:00:30 GMT")], 30.0),
        ([(b"retry-after", b"Tue, 01 Dec 2026 11:00:00 GMT")], 0.0),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"-3")], None),
        ([(b"retry-after", b"1" * 400)], None),
        ([(b"retry-after", b"9"), (b"retry-after-ms", b"1500")], 1.5),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    headers: list[tuple[bytes, bytes]], seconds: float | None
) -> None:
    """Milliseconds, as OpenAI sends them, take precedence."""
    assert retry_after_s(headers, datetime(2026, 12, 1, 12, tzinfo=UTC)) == seconds
