"""How an error ends a command: three lines on stderr and an exit code that scripts can rely on."""

from __future__ import annotations

import re

from cortex_cli.color import Paint
from cortex_common import errors
from cortex_common.errors import CortexError
from cortex_common.net.tls import PEER_EXPIRED
from cortex_common.schema.certificates import RENEW_HINT

EXIT_CODES = {
    0: "success",
    1: "the operation failed, or a check found errors",
    2: "the command line is wrong",
    3: "what was named does not exist",
    4: "the key is missing, unknown, or lacks the scope",
    5: "the gateway can't be reached",
    6: "refused for now: it does not fit, is pinned, or is busy",
    7: "timed out waiting",
    8: "done in part",
    130: "interrupted",
}

_BY_CLASS: tuple[tuple[type[CortexError], int], ...] = (
    (errors.NotFound, 3),
    (errors.AuthenticationFailed, 4),
    (errors.PermissionDenied, 4),
    (errors.DoesNotFit, 6),
    (errors.Busy, 6),
    (errors.Conflict, 6),
    (errors.ModelLoading, 7),
    (errors.NoHealthyNode, 6),
    (errors.UpstreamTimeout, 7),
)

_FALLBACK_HINTS: tuple[tuple[type[CortexError], str], ...] = (
    (
        errors.AuthenticationFailed,
        "put the key into CORTEX_API_KEY, or its file into CORTEX_API_KEY_FILE",
    ),
    (errors.PermissionDenied, "use a key with the operator scope"),
    (errors.ModelNotFound, "`cortex models ls` lists the models"),
    (errors.NodeNotFound, "`cortex nodes ls` lists the nodes"),
    (errors.ModelLoading, "the load goes on; watch it with `cortex ps --watch`"),
)

_FOR_CLIENTS = ("GET /v1/models lists", "send it as `Authorization")
"""How hints of the gateway begin that are for those who speak HTTP; at a shell our own say more."""


_WAYS = (
    ("Hostname mismatch|IP address mismatch", "its URL must say a name that its certificate has"),
    (PEER_EXPIRED, RENEW_HINT),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "SSL_CERT_FILE names the file of the authority that its certificate is from",
    ),
    ("WRONG_VERSION_NUMBER", "does it speak plain HTTP? then its URL begins with http://"),
    ("disconnected without sending", "does it speak TLS? then its URL begins with https://"),
    (
        "name resolution|Name or service|nodename nor|No address associated",
        "no name server knows that name: mend it in --gateway, CORTEX_GATEWAY_URL or the context",
    ),
)
"""What the reason says why the gateway can't be reached, as alternatives, and what to do about it."""

_RUNNING = (
    "is the gateway running? name it with --gateway or CORTEX_GATEWAY_URL, or try `cortex demo`"
)


class PartialSuccess(CortexError):
    """Some of what was asked for was done, some not."""

    code = "partial_success"


class TimedOut(CortexError):
    """The wait that the operator allowed is over; what was waited for may still happen."""

    code = "timed_out"
    status = 504


def exit_code(error: Exception) -> int:
    """The exit code that an error ends the process with; see `EXIT_CODES`."""
    if isinstance(error, CortexError) and error.details.get("unreachable"):
        return 5
    table = ((PartialSuccess, 8), (TimedOut, 7), *_BY_CLASS)
    return next((code for kind, code in table if isinstance(error, kind)), 1)


def describe(error: Exception, paint: Paint) -> str:
    """What stderr says: the error, an empty line, and what to do about it."""
    if not isinstance(error, CortexError):
        text = f"unexpected {type(error).__name__}: {error}"
        hints: tuple[str, ...] = ("repeat it with `cortex --debug ...` and report what that shows",)
    else:
        text = error.message
        hints = tuple(hint for hint in error.hints if not hint.startswith(_FOR_CLIENTS))
        if not hints or len(hints) < len(error.hints):
            hints += _fallback(error)
    lines = [f"{paint.bad('error:')} {text or type(error).__name__}"]
    if hints:
        lines += ["", *(f"{paint.hint('hint:')} {hint}" for hint in dict.fromkeys(hints))]
    return "\n".join(lines)


def _fallback(error: CortexError) -> tuple[str, ...]:
    if error.details.get("unreachable"):
        return (next((way for said, way in _WAYS if re.search(said, error.message)), _RUNNING),)
    return tuple(hint for kind, hint in _FALLBACK_HINTS if isinstance(error, kind))[:1]
