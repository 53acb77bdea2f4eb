"""What a verb did to each of the things that were named, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cortex_cli.output import Kind
from cortex_common.errors import CortexError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why nothing was done; see `CortexError`."""

    code: str
    message: str
    hints: tuple[str, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one thing.

    Attributes:
        name: as it was meant.
        action: the verb, such as "load".
        outcome: done, planned (with --dry-run) or failed.
        result: what the gateway answered: its object for the verb, or for its plan.
        error: where it failed.
    """

    name: str
    action: str
    outcome: str
    result: Any = None
    error: Failure | None = None


def failure(error: CortexError) -> Failure:
    """An error as data."""
    return Failure(error.code, error.message, error.hints, error.details)


RESULTS: Kind[Result] = Kind("ResultList", (), lambda r: r.name, "nothing was done")
