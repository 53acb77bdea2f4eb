"""Traces of requests: read from JSON lines, or generated with the properties of real traffic."""

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
        model: the requested model.
        tokens: tokens of the response.
    """

    at: float
    model: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Parameters of generated traffic.

    Attributes:
        requests: number of requests.
        hours: duration.
        zipf: exponent of popularity: the n-th model is requested in proportion to n ** -zipf.
        burst: share of requests in bursts, several for one model within a minute.
        day: amplitude of the daily cycle: 0 for none, 1 for a rate between zero and double the mean.
        tokens: mean length of a response; lengths are exponentially distributed.
        seed: the same seed generates the same trace.
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
    """Return requests for these models, most popular first, in order of time."""
    rng = random.Random(traffic.seed)  # noqa: S311 - not a secret
    names = list(models)
    shares = list(accumulate((rank + 1) ** -traffic.zipf for rank in range(len(names))))
    requests: list[Request] = []
    while len(requests) < traffic.requests:
        at = _moment(traffic, rng)
        model = names[bisect(shares, rng.random() * shares[-1])]
        size = 1
        if rng.random() < traffic.burst / BURST_MEAN:
            size = 1 + int(rng.expovariate(1 / (BURST_MEAN - 1)))
        for _ in range(min(size, traffic.requests - len(requests))):
            tokens = 1 + int(rng.expovariate(1 / traffic.tokens))
            requests.append(Request(at, model, tokens))
            at += rng.expovariate(BURST_MEAN / BURST_S)
    requests.sort(key=lambda r: r.at)
    return requests


def _moment(traffic: Traffic, rng: random.Random) -> float:
    """Return a time drawn from the daily cycle, by rejection sampling."""
    while True:
        at = rng.random() * traffic.hours * 3600
        rate = 1 - traffic.day * math.cos(2 * math.pi * at / DAY_S)
        if rng.random() * (1 + traffic.day) < rate:
            return at


def read(lines: Iterable[str], name: str) -> Iterator[Request]:
    """Yield requests from JSON lines with `time` (seconds), `model` and `tokens`.

    Args:
        lines: the lines.
        name: name of the file in errors.

    Raises:
        BadRequest: a line is not such an object, or its time is before the previous line's.
    """
    previous = float("-inf")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            request = Request(float(found["time"]), str(found["model"]), int(found["tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(
                f"{name}:{number}: expected an object with time, model and tokens"
            ) from error
        if request.at < previous:
            raise BadRequest(
                f"{name}:{number}: time is before the previous line's",
                hints=("sort the trace by time",),
            )
        previous = request.at
        yield request


def write(requests: Iterable[Request], file: TextIO) -> None:
    """Write the trace as JSON lines."""
    for r in requests:
        line = {"time": round(r.at, 3), "model": r.model, "tokens": r.tokens}
        file.write(json.dumps(line) + "\n")
