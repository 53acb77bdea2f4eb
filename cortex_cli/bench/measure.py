"""Asking a model again and again, so many at a time, and writing down when what came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

from cortex_cli.bench.statistics import Level, Sample, level
from cortex_cli.inference import Inference, Message
from cortex_common.errors import CortexError

_WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"),
    *("and", "runs", "through", "wide", "green", "fields", "until", "night"),
)


def prompt(tokens: int, number: int) -> list[Message]:
    """A question of about so many tokens, different for each number so that no prompt cache helps.

    A common English word is about one token for the usual tokenizers; the answer's usage tells the truth.
    """
    words = [_WORDS[(i * 7 + number) % len(_WORDS)] for i in range(max(1, tokens - 2))]
    return [Message(role="user", content=f"{number}: {' '.join(words)}")]


async def one(
    inference: Inference, model: str, messages: Sequence[Message], output_tokens: int
) -> Sample:
    """Ask once."""
    began = time.perf_counter()
    times: list[float] = []
    counted: int | None = None
    try:
        async for piece in inference.chat(model, messages, max_tokens=output_tokens):
            if piece.text or piece.thinking:
                times.append(piece.at)
            if piece.usage is not None:
                counted = piece.usage.completion_tokens
    except CortexError as failed:
        return Sample(None, time.perf_counter() - began, error=failed.code)
    return Sample(
        first_s=times[0] if times else None,
        total_s=time.perf_counter() - began,
        tokens=counted if counted is not None else len(times),
        gaps_s=tuple(later - earlier for earlier, later in pairwise(times)),
    )


async def at(
    inference: Inference,
    model: str,
    *,
    concurrency: int,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
) -> Level:
    """Ask so often with so many under way at a time: each of that many users asks again when answered."""
    numbers = iter(range(requests))
    samples: list[Sample] = []

    async def user() -> None:
        for number in numbers:
            messages = prompt(prompt_tokens, concurrency * 100_000 + number)
            samples.append(await one(inference, model, messages, output_tokens))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, requests)):
            group.create_task(user())
    return level(concurrency, samples, time.perf_counter() - began)
