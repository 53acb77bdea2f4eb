"""CPU time per stream event: translated, repaired and aggregated, compared with a lower bound.

Run: `python tests/bench/bench_dialects.py`. The unit is microseconds of CPU time per event of the engine, one
event per chunk, as in a fast stream of short tokens; the median of several rounds.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable

from dialects_kit import responses_stream

from cortex_common.sse import SseParser
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.text import ModelNameRewriter

_EVENTS = 5000
_ROUNDS = 9

Feed = Callable[[bytes], object]


def _chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
    }
    body = head | {"model": "Qwen/Qwen3-Coder-30B-A3B-Instruct", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _text() -> list[bytes]:
    return [_chunk({"content": f" token{n % 10}"}) for n in range(_EVENTS)]


def _call() -> list[bytes]:
    def piece(**fields: object) -> bytes:
        return _chunk({"tool_calls": [{"index": 0, "function": {"arguments": 'ab\\"'}} | fields]})

    first = piece(id="c", function={"name": "f", "arguments": '{"x":"'})
    return [first, *(piece() for _ in range(_EVENTS - 1))]


def _count(data: bytes) -> int:
    """Count the events, which is the least that a relay would do."""
    return data.count(b"\n\n")


def _feeds() -> dict[str, Callable[[], Feed]]:
    return {
        "lower bound: count the events": lambda: _count,
        "SSE parser alone": lambda: SseParser().feed,
        "OpenAI, repaired": lambda: StreamRepair(response_id="r", client_wants_usage=False).feed,
        "OpenAI, repaired, with the client's model name": lambda: (
            StreamRepair(
                response_id="r", client_wants_usage=False, rename_model=ModelNameRewriter("alias")
            ).feed
        ),
        "Anthropic Messages, translated": lambda: (
            MessagesStreamWriter(message_id="m", model="m").feed
        ),
        "OpenAI Responses, translated": lambda: responses_stream().feed,
        "OpenAI, aggregated": lambda: StreamAggregator(response_id="r").feed,
    }


def _cost(make: Callable[[], Feed], chunks: list[bytes], events: int) -> float:
    """Return the microseconds of CPU time per event."""
    rounds = []
    for _ in range(_ROUNDS):
        feed = make()
        gc.collect()
        started = time.process_time_ns()
        for data in chunks:
            feed(data)
        rounds.append((time.process_time_ns() - started) / events / 1000)
    return statistics.median(rounds)


def main() -> None:
    """Print the table."""
    text, calls = _text(), _call()
    batches = [b"".join(text[at : at + 8]) for at in range(0, len(text), 8)]
    print(f"{'us of CPU per event':38}{'text':>8}{'8 per chunk':>11}{'calls':>8}")
    for name, make in _feeds().items():
        costs = [_cost(make, chunks, _EVENTS) for chunks in (text, batches, calls)]
        print(f"{name:38}{costs[0]:8.2f}{costs[1]:11.2f}{costs[2]:8.2f}")


if __name__ == "__main__":
    main()
