from __future__ import annotations

import pytest

from cortex_cli.color import Paint
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
    """Each failure ends the process with the code that is documented for it."""
    assert exit_code(error) == code


def test_every_exit_code_is_documented():
    """No error of the tree ends with a code that the help does not explain."""
    assert {exit_code(cls("no")) for cls in ERRORS_BY_CODE.values()} <= set(EXIT_CODES)


def test_an_error_is_three_lines():
    """A failure says what is wrong, leaves a line, and says what to do."""
    error = CortexError("it does not fit", hints=("free some room",))

    assert describe(error, Paint()) == "error: it does not fit\n\nhint: free some room"


def test_an_unreachable_gateway_has_a_hint():
    """When the gateway cannot be reached, the person learns how to name another one."""
    error = UpstreamFailed("refused", details={"unreachable": True})

    assert "CORTEX_GATEWAY_URL" in describe(error, Paint())


def test_a_gateway_whose_certificate_has_ended_needs_a_new_one():
    """No other authority would help there, so none is asked for."""
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"
    error = UpstreamFailed(reason, details={"unreachable": True})

    assert describe(error, Paint()).endswith("hint: " + RENEW_HINT)


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
def test_hints_for_those_who_speak_http_are_said_for_a_shell(error: CortexError, hint: str):
    """Headers and routes are no help to whoever types a command."""
    text = describe(error, Paint())

    assert hint in text
    assert error.hints[0] not in text


def test_an_unexpected_error_names_its_class_and_the_way_to_more():
    """A defect shows no traceback but says how to get one."""
    text = describe(ZeroDivisionError("division by zero"), Paint())

    assert text.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug" in text
