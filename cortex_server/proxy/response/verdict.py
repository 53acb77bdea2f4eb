"""Whether an engine's answer is usable, decided before its first byte goes to the client.

The status decides first, then the first bytes (`first_bytes`); what has to be read to its end, as a whole chat
completion, is decided there. An answer that is not usable is a `Rejection`. Its `Fault` decides what follows:

========  =====================================================  =================  ==============================
fault     meaning                                                another instance?  effect on the circuit breaker
========  =====================================================  =================  ==============================
CLIENT    the request is wrong for any instance                  no                 the instance is well
ENGINE    the engine failed                                      yes                a failure
ACCOUNT   our key, account or list of models is wrong there      yes                a failure
BUSY      the engine has too much to do                          yes                a pause, as Retry-After says
FEATURE   the engine lacks the route                             yes                none
LOST      the node can't be reached                              yes                none: absence is no failure
GATEWAY   the gateway itself failed, or an operator intervened   no                 none
========  =====================================================  =================  ==============================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from cortex_common.errors import BadRequest, CortexError, PromptTooLong
from cortex_http.headers import Headers

CHAT = "/v1/chat/completions"


class Fault(StrEnum):
    """Whose fault it is that an answer is not usable; see the module docstring."""

    CLIENT = "client"
    ENGINE = "engine"
    ACCOUNT = "account"
    BUSY = "busy"
    FEATURE = "feature"
    LOST = "lost"
    GATEWAY = "gateway"

    @property
    def is_retryable(self) -> bool:
        """Whether another instance may answer."""
        return self not in {Fault.CLIENT, Fault.GATEWAY}

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the instance."""
        return self in {Fault.ENGINE, Fault.ACCOUNT}


@dataclass(frozen=True, slots=True)
class Rejection:
    """An answer that is not usable, or the lack of one.

    Attributes:
        error: What is wrong.
        fault: Whose fault it is.
        status: Status of the engine; 0 without an answer, 200 for an error inside one.
        body: The engine's body if its status says that it failed; a client of its dialect gets it as it is.
        headers: Its headers that clients get with an error.
        unreachable: Whether the request did not reach an engine, or was lost with it: a restart may help.
    """

    error: CortexError
    fault: Fault
    status: int = 0
    body: bytes = b""
    headers: Headers = field(default_factory=list)
    unreachable: bool = False


_FAULT_BY_STATUS = {
    401: Fault.ACCOUNT,
    402: Fault.ACCOUNT,
    403: Fault.ACCOUNT,
    405: Fault.FEATURE,
    407: Fault.ENGINE,
    408: Fault.ENGINE,
    421: Fault.ENGINE,
    425: Fault.BUSY,
    426: Fault.ENGINE,
    429: Fault.BUSY,
    501: Fault.FEATURE,
    503: Fault.BUSY,
    511: Fault.ENGINE,
    529: Fault.BUSY,
}
"""Statuses other than these are the client's fault from 400 to 499, and the engine's everywhere else. 404 depends on
the route."""

_MODERATION = re.compile(r"moderat|flagged|content.?(policy|filter)|safety", re.IGNORECASE)
"""Messages of a 403 about what the client wrote, not about the gateway's key."""

_OUT_OF_CREDIT = re.compile(
    r"insufficient.?(quota|balance)|exceeded your current quota", re.IGNORECASE
)
"""Messages of a 429 that no pause ends."""


def find_fault(error: CortexError, path: str, status: int = 0) -> Fault:
    """Return whose fault an engine's error is.

    Args:
        error: The error, as parsed by `dialects.engine_errors` or raised by the proxy.
        path: Path of the engine's route.
        status: Status of the engine; by default the one that the error stands for.
    """
    status = status or error.details.get("upstream_status", error.status)
    if isinstance(error, PromptTooLong) or (isinstance(error, BadRequest) and status >= 500):
        return Fault.CLIENT  # llama.cpp reports some of them with 500
    if status == 403 and _MODERATION.search(error.message):
        return Fault.CLIENT
    if status == 429 and _OUT_OF_CREDIT.search(error.message):
        return Fault.ACCOUNT
    if status == 404:
        about_model = path == CHAT or "model" in error.message.lower()
        return Fault.ACCOUNT if about_model else Fault.FEATURE
    found = _FAULT_BY_STATUS.get(status)
    if found is not None:
        return found
    return Fault.CLIENT if 400 <= status < 500 else Fault.ENGINE


def retry_after_s(
    headers: Iterable[tuple[bytes, bytes]], now: datetime | None = None
) -> float | None:
    """Return the seconds that a response asks to wait, from `retry-after-ms` or else `retry-after`.

    Args:
        headers: The response's headers, with names in lower case.
        now: The time that a date is compared with; the present by default.
    """
    by_name = dict(headers)
    milliseconds = by_name.get(b"retry-after-ms", b"").strip()
    if milliseconds.isdigit() and len(milliseconds) < 13:
        return int(milliseconds) / 1000
    value = by_name.get(b"retry-after", b"").strip()
    if not value:
        return None
    text = value.decode("latin-1")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
