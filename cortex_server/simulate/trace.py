"""Traces: who asked for what when. Read from JSON lines, or made up with what real traffic has."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TextIO

from cortex_common.errors import BadRequest

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace.

    Attributes:
        at: seconds since the trace began.
        tokens: how many tokens the answer has.
    """

    at: float
    model: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What made-up traffic is like.

    Attributes:
        requests: how many in all.
        hours: over how long.
        zipf: exponent of popularity: the n-th model is asked for in proportion to n ** -zipf.
        burst: share of requests that come as bursts, several for one model within a minute.
        day: how much the rate swings over a day: 0 not at all, 1 between nothing and double.
        tokens: mean length of an answer; lengths are exponential.
        seed: the same seed gives the same trace.
    """

    requests: int = 100_000
    hours: float = 24.0
    zipf: float = 1.0
    burst: float = 0.3
    day: float = 0.7
    tokens: int = 300
    seed: int = 1


BURST_MEAN = 12
BURST_S = 60.0


def generate(traffic: Traffic, models: Iterable[str]) -> list[Request]:
    """Requests for these models, the most popular first, in order of time."""
    rng = random.Random(traffic.seed)  # noqa: S311 - a trace is no secret
    names = list(models)
    shares = list(accumulate((rank + 1) ** -traffic.zipf for rank in range(len(names))))
    made: list[Request] = []
    while len(made) < traffic.requests:
        at = _moment(traffic, rng)
        model = names[bisect(shares, rng.random() * shares[-1])]
        size = 1
        if rng.random() < traffic.burst / BURST_MEAN:
            size = 1 + int(rng.expovariate(1 / (BURST_MEAN - 1)))
        for _ in range(min(size, traffic.requests - len(made))):
            tokens = 1 + int(rng.expovariate(1 / traffic.tokens))
            made.append(Request(at, model, tokens))
            at += rng.expovariate(BURST_MEAN / BURST_S)
    made.sort(key=lambda r: r.at)
    return made


def _moment(traffic: Traffic, rng: random.Random) -> float:
    """A time drawn by the swing of the day, by rejection."""
    while True:
        at = rng.random() * traffic.hours * 3600
        rate = 1 - traffic.day * math.cos(2 * math.pi * at / DAY_S)
        if rng.random() * (1 + traffic.day) < rate:
            return at


def read(lines: Iterable[str], name: str) -> Iterator[Request]:
    """Requests from JSON lines with `time` (seconds), `model` and `tokens`.

    Args:
        lines: of the file.
        name: what to call it in errors.

    Raises:
        BadRequest: a line is no such object, or goes back in time.
    """
    before = float("-inf")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            request = Request(float(found["time"]), str(found["model"]), int(found["tokens"]))
        except (ValueError, KeyError, TypeError) as wrong:
            raise BadRequest(
                f"{name}:{number}: not an object with time, model and tokens"
            ) from wrong
        if request.at < before:
            raise BadRequest(f"{name}:{number}: time goes back", hints=("sort the trace by time",))
        before = request.at
        yield request


def write(requests: Iterable[Request], file: TextIO) -> None:
    """The trace as JSON lines."""
    for r in requests:
        line = {"time": round(r.at, 3), "model": r.model, "tokens": r.tokens}
        file.write(json.dumps(line) + "\n")
