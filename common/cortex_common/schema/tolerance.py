"""Tolerance towards peers of another version: an entry of a list that this version can't read is left out."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler


def keep_readable(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a list or an object; leave out the entries that can't be validated instead of rejecting all.

    A newer neuron can use words for the state of an instance, or kinds of devices, that this version does not know. The
    rest of its report still holds.
    """
    try:
        return handler(value)
    except ValidationError:
        if isinstance(value, dict):
            readable = (item for item in value.items() if _is_readable(dict([item]), handler))
            return handler(dict(readable))
        if isinstance(value, list | tuple):
            return handler([item for item in value if _is_readable([item], handler)])
        raise


def _is_readable(value: Any, handler: ValidatorFunctionWrapHandler) -> bool:
    try:
        handler(value)
    except ValidationError:
        return False
    return True
