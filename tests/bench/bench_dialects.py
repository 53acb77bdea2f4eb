"""CPU for each event of a stream: translated, repaired, assembled, beside the bare floor.

Run: `python tests/bench/bench_dialects.py`. The unit is microseconds of CPU for one event of the engine, one
event a chunk, as a fast stream of short tokens comes from the socket; the median of several rounds.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable

from cortex_http.sse import SseParser
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.stream import ResponsesStreamWriter
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
    """What a bare relay would do at the least: count the events."""
    return data.count(b"\n\n")


def _feeds() -> dict[str, Callable[[], Feed]]:
    return {
        "floor: count the events": lambda: _count,
        "SSE parser alone": lambda: SseParser().feed,
        "OpenAI, passed through the repair": lambda: (
            StreamRepair(response_id="r", client_wants_usage=False).feed
        ),
        "the same, echoing the client's name": lambda: (
            StreamRepair(
                response_id="r", client_wants_usage=False, rename_model=ModelNameRewriter("alias")
            ).feed
        ),
        "Anthropic Messages, translated": lambda: (
            MessagesStreamWriter(message_id="m", model="m").feed
        ),
        "OpenAI Responses, translated": lambda: (
            ResponsesStreamWriter(response_id="r", model="m", created=0).feed
        ),
        "OpenAI, assembled to one answer": lambda: StreamAggregator(response_id="r").feed,
    }


def _cost(make: Callable[[], Feed], chunks: list[bytes], events: int) -> float:
    """Microseconds of CPU for an event."""
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
    print(f"{'us of CPU for an event':38}{'text':>8}{'8 a chunk':>11}{'calls':>8}")
    for name, make in _feeds().items():
        costs = [_cost(make, chunks, _EVENTS) for chunks in (text, batches, calls)]
        print(f"{name:38}{costs[0]:8.2f}{costs[1]:11.2f}{costs[2]:8.2f}")


if __name__ == "__main__":
    main()
