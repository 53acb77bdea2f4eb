"""The line of statistics after a response."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.inference import ChatChunk
from cortex_common.units import format_duration

MIN_ARRIVALS = 5
"""Number of times at which text must have arrived for its rate to mean anything."""


def statistics_line(model: str, chunks: Sequence[ChatChunk]) -> str:
    """Return model, node, tokens, time to the first token, and tokens per second of a response."""
    content = [c for c in chunks if c.text or c.thinking]
    usage = next((c.usage for c in reversed(chunks) if c.usage), None)
    parts = [model]
    if chunks and (node := chunks[0].headers.get("x-cortex-node")):
        parts.append(f"on {node}")
    count = usage.completion_tokens if usage else len(content)
    parts.append(f"{count} tokens" if usage else f"{count} chunks")
    if content:
        parts.append(f"first after {format_duration(content[0].at)}")
    if (rate := token_rate(content, count)) is not None:
        parts.append(f"{rate:.1f}/s")
    return ", ".join(parts)


def token_rate(content: Sequence[ChatChunk], count: int) -> float | None:
    """Return the tokens per second of a response, or None if it arrived in too few pieces to tell.

    Tokens that arrived together with the first are not counted, because the time of their generation is unknown. The
    tokens are assumed to be spread evenly over the chunks.

    Args:
        content: chunks with text, in order.
        count: tokens in all of them.
    """
    arrivals = {chunk.at for chunk in content}
    if len(arrivals) < MIN_ARRIVALS:
        return None
    first, last = content[0].at, content[-1].at
    later = sum(chunk.at > first for chunk in content)
    return count * later / len(content) / (last - first)
