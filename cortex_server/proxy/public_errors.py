"""What clients learn of the fleet from errors: the inside of the fleet is for operators.

The reason of a failed load contains lines of the engine's log, with paths and other models; a plan that fits nowhere
names devices and what is loaded there. Clients get the same error code and the request's id, with which
`cortex why ID` shows the reason.
"""

from __future__ import annotations

from cortex_common.errors import (
    Busy,
    CortexError,
    DoesNotFit,
    LoadFailed,
    ModelLoading,
    NoHealthyNode,
)
from cortex_common.schema.keys import Scope
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Key

_FOR_CLIENTS = (Busy, ModelLoading)
"""Errors that say nothing about the inside of the fleet."""

_MESSAGES: tuple[tuple[type[CortexError], str], ...] = (
    (LoadFailed, "model {model!r} could not be loaded"),
    (DoesNotFit, "model {model!r} fits on no device"),
    (NoHealthyNode, "no node that could serve model {model!r} is available"),
    (CortexError, "model {model!r} is not available"),
)


def sees_internals(key: Key, access_control: AccessControl) -> bool:
    """Return whether a client is an operator too: by its key, or on this host as long as no key is needed for that."""
    keyring = access_control.keyring
    if key is keyring.anonymous:
        return not access_control.insecure and Scope.OPERATOR not in keyring.protected
    return Scope.OPERATOR in key.terms.scopes


def public_error(error: CortexError, model: str, request: str) -> CortexError:
    """Return the error that a client gets when its model can't be loaded.

    Args:
        error: the error for operators.
        model: name of the model as the client knows it.
        request: id of the request.
    """
    if isinstance(error, _FOR_CLIENTS):
        return error
    message = next(text for kind, text in _MESSAGES if isinstance(error, kind))
    return type(error)(
        message.format(model=model),
        hints=(f"an operator sees the reason with `cortex why {request}`",),
        retry_after=error.retry_after,
    )
