"""Measurement of a model: requests at a fixed concurrency, with the time of each chunk."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise

from cortex_cli.bench.statistics import Level, Sample, summarize_level
from cortex_cli.inference import Inference, Message
from cortex_common.errors import CortexError

_WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"),
    *("and", "runs", "through", "wide", "green", "fields", "until", "night"),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent at each concurrency.

    Attributes:
        model: name or alias.
        requests: number of requests.
        prompt_tokens: approximate length of each prompt.
        output_tokens: maximum length of each response.
    """

    model: str
    requests: int
    prompt_tokens: int
    output_tokens: int


def make_prompt(tokens: int, number: int) -> list[Message]:
    """Return a prompt of approximately this many tokens, different for each number to defeat prompt caches.

    A common English word is about one token in the usual tokenizers; the usage of the response has the exact count.
    """
    words = [_WORDS[(i * 7 + number) % len(_WORDS)] for i in range(max(1, tokens - 2))]
    return [Message(role="user", content=f"{number}: {' '.join(words)}")]


async def measure_request(inference: Inference, workload: Workload, number: int) -> Sample:
    """Send one request and measure it."""
    messages = make_prompt(workload.prompt_tokens, number)
    started = time.perf_counter()
    times: list[float] = []
    tokens: int | None = None
    try:
        async for chunk in inference.chat(
            workload.model, messages, max_tokens=workload.output_tokens
        ):
            if chunk.text or chunk.thinking:
                times.append(chunk.at)
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    except CortexError as error:
        return Sample(None, time.perf_counter() - started, error=error.code)
    return Sample(
        first_s=times[0] if times else None,
        total_s=time.perf_counter() - started,
        tokens=tokens if tokens is not None else len(times),
        gaps_s=tuple(later - earlier for earlier, later in pairwise(times)),
    )


async def measure_level(inference: Inference, workload: Workload, concurrency: int) -> Level:
    """Send the requests of a workload from this many users, each of whom waits for a response before the next one."""
    numbers = iter(range(workload.requests))
    samples: list[Sample] = []

    async def user() -> None:
        for number in numbers:
            prompt_number = concurrency * 100_000 + number
            samples.append(await measure_request(inference, workload, prompt_number))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, workload.requests)):
            group.create_task(user())
    return summarize_level(concurrency, samples, time.perf_counter() - started)
