from __future__ import annotations

import pytest

from cortex_cli.color import Colors
from cortex_cli.error_exit import EXIT_CODES, PartialSuccess, TimedOut, describe, exit_code
from cortex_common import errors
from cortex_common.errors import ERRORS_BY_CODE, CortexError, UpstreamFailed
from cortex_common.schema.certificates import RENEW_HINT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelNotFound("no"), 3),
        (errors.NodeNotFound("no"), 3),
        (errors.AuthenticationFailed("no"), 4),
        (errors.PermissionDenied("no"), 4),
        (UpstreamFailed("no", details={"unreachable": True}), 5),
        (UpstreamFailed("no"), 1),
        (errors.DoesNotFit("no"), 6),
        (errors.Busy("no"), 6),
        (errors.Conflict("no"), 6),
        (errors.UpstreamTimeout("no"), 7),
        (errors.ModelLoading("no"), 7),
        (TimedOut("no"), 7),
        (PartialSuccess("no"), 8),
        (errors.LoadFailed("no"), 1),
        (ValueError("no"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int):
    """Each error has the exit code that is documented for it."""
    assert exit_code(error) == code


def test_every_exit_code_is_documented():
    """Every error class has an exit code that the help text lists."""
    assert {exit_code(cls("no")) for cls in ERRORS_BY_CODE.values()} <= set(EXIT_CODES)


def test_an_error_is_three_lines():
    """The output is the error, an empty line, and a hint."""
    error = CortexError("it does not fit", hints=("free some memory",))

    assert describe(error, Colors()) == "error: it does not fit\n\nhint: free some memory"


def test_an_unreachable_gateway_has_a_hint():
    """The hint for an unreachable gateway explains how to select another one."""
    error = UpstreamFailed("refused", details={"unreachable": True})

    assert "CORTEX_GATEWAY_URL" in describe(error, Colors())


def test_an_expired_certificate_of_the_gateway_must_be_renewed():
    """The hint is to renew the certificate, not to configure another authority."""
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"
    error = UpstreamFailed(reason, details={"unreachable": True})

    assert describe(error, Colors()).endswith("hint: " + RENEW_HINT)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (
            errors.AuthenticationFailed("no", hints=("send it as `Authorization: Bearer ...`",)),
            "CORTEX_API_KEY",
        ),
        (
            errors.ModelNotFound("no", hints=("GET /v1/models lists the models",)),
            "cortex models ls",
        ),
    ],
)
def test_hints_for_api_clients_are_replaced(error: CortexError, hint: str):
    """Hints about headers and routes are replaced by hints for a shell."""
    text = describe(error, Colors())

    assert hint in text
    assert error.hints[0] not in text


def test_an_unexpected_error_mentions_debug():
    """An unexpected error shows its class and how to get a traceback."""
    text = describe(ZeroDivisionError("division by zero"), Colors())

    assert text.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug" in text
