"""How an error ends a command: a message with a hint on stderr, and an exit code for scripts."""

from __future__ import annotations

import re

from cortex_cli.color import Colors
from cortex_common import errors
from cortex_common.errors import CortexError
from cortex_common.net.tls import PEER_EXPIRED
from cortex_common.schema.certificates import RENEW_HINT

EXIT_CODES = {
    0: "success",
    1: "the operation failed, or a check found errors",
    2: "invalid command line",
    3: "not found",
    4: "the key is missing, unknown, or lacks the scope",
    5: "the gateway can't be reached",
    6: "refused: it does not fit, is pinned, or is busy; retry later",
    7: "timed out",
    8: "partial success",
    130: "interrupted",
}


class PartialSuccess(CortexError):
    """An action failed on some of several names."""

    code = "partial_success"


class TimedOut(CortexError):
    """The wait has timed out; the operation continues."""

    code = "timed_out"
    status = 504


_EXIT_CODES_BY_CLASS: tuple[tuple[type[CortexError], int], ...] = (
    (PartialSuccess, 8),
    (TimedOut, 7),
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

_HINTS_BY_CLASS: tuple[tuple[type[CortexError], str], ...] = (
    (
        errors.AuthenticationFailed,
        "set CORTEX_API_KEY to the key, or CORTEX_API_KEY_FILE to its file",
    ),
    (errors.PermissionDenied, "use a key with the operator scope"),
    (errors.ModelNotFound, "`cortex models ls` lists the models"),
    (errors.NodeNotFound, "`cortex nodes ls` lists the nodes"),
    (errors.ModelLoading, "the load continues; watch it with `cortex ps --watch`"),
)

_API_HINTS = ("GET /v1/models lists", "send it as `Authorization")
"""Prefixes of the gateway's hints for API clients, which do not apply to a shell."""

_UNREACHABLE_HINTS = (
    (
        "Hostname mismatch|IP address mismatch",
        "use a URL with a name that the gateway's certificate contains",
    ),
    (PEER_EXPIRED, RENEW_HINT),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "set SSL_CERT_FILE to the file of the authority that signed the gateway's certificate",
    ),
    ("WRONG_VERSION_NUMBER", "does the gateway use plain HTTP? then its URL starts with http://"),
    ("disconnected without sending", "does the gateway use TLS? then its URL starts with https://"),
    (
        "name resolution|Name or service|nodename nor|No address associated",
        "the host name is unknown; correct it in --gateway, CORTEX_GATEWAY_URL or the context",
    ),
)
"""Patterns of the reason why the gateway can't be reached, and the hint for each; the first match applies."""

_DEFAULT_UNREACHABLE_HINT = (
    "is the gateway running? set its URL with --gateway or CORTEX_GATEWAY_URL, or try `cortex demo`"
)


def exit_code(error: Exception) -> int:
    """Return the exit code for an error; see `EXIT_CODES`."""
    if isinstance(error, CortexError) and error.details.get("unreachable"):
        return 5
    return next((code for kind, code in _EXIT_CODES_BY_CLASS if isinstance(error, kind)), 1)


def describe(error: Exception, colors: Colors) -> str:
    """Return the text for stderr: the error, an empty line, and hints."""
    if not isinstance(error, CortexError):
        text = f"unexpected {type(error).__name__}: {error}"
        hints: tuple[str, ...] = ("run `cortex --debug ...` and report the traceback",)
    else:
        text = error.message
        hints = tuple(hint for hint in error.hints if not hint.startswith(_API_HINTS))
        if not hints or len(hints) < len(error.hints):
            hints += _default_hints(error)
    lines = [f"{colors.bad('error:')} {text or type(error).__name__}"]
    if hints:
        lines += ["", *(f"{colors.hint('hint:')} {hint}" for hint in dict.fromkeys(hints))]
    return "\n".join(lines)


def _default_hints(error: CortexError) -> tuple[str, ...]:
    if error.details.get("unreachable"):
        matching = (h for pattern, h in _UNREACHABLE_HINTS if re.search(pattern, error.message))
        return (next(matching, _DEFAULT_UNREACHABLE_HINT),)
    return tuple(hint for kind, hint in _HINTS_BY_CLASS if isinstance(error, kind))[:1]
