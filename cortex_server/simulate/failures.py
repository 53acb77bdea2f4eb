"""What goes wrong in a simulation: engines that run out of memory or crash, and nodes that are away."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from pydantic import Field

from cortex_common.config.base import Section


class Failures(Section):
    """[failures]: what goes wrong, and how often. Default: nothing."""

    crashes_per_hour: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Ready instances that crash in the fleet."""

    absences_per_hour: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Hosts that are away for a while."""

    absence_s: Annotated[float, Field(gt=0)] = 20.0
    """Mean seconds of an absence."""

    seed: int = 1
    """The same seed generates the same failures."""


SAMPLE = Failures(crashes_per_hour=6.0, absences_per_hour=4.0)
"""The failures of `cortex simulate --failures`."""


class FailureKind(Enum):
    """What happens."""

    CRASH = "crash"
    ABSENCE = "absence"


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """A failure of a trace.

    Attributes:
        at: seconds since the trace began.
        kind: what happens.
        choice: 0 to 1, which of the instances or hosts that exist then it happens to.
        seconds: how long a host is away.
    """

    at: float
    kind: FailureKind
    choice: float
    seconds: float = 0.0


def generate_failures(failures: Failures, end: float) -> Iterator[FailureEvent]:
    """Yield the failures until a time, at random moments, each kind in order of time."""
    rng = random.Random(failures.seed)  # noqa: S311 - not a secret
    rates = (
        (FailureKind.CRASH, failures.crashes_per_hour),
        (FailureKind.ABSENCE, failures.absences_per_hour),
    )
    for kind, per_hour in rates:
        at = rng.expovariate(per_hour / 3600) if per_hour else end
        while at < end:
            yield FailureEvent(at, kind, rng.random(), rng.expovariate(1 / failures.absence_s))
            at += rng.expovariate(per_hour / 3600)
