"""Which instance saw a conversation before, and so probably has its beginning cached.

A prompt is cut into blocks, and each block is named by everything up to its end. Two requests share the names of
their common beginning, so the longest name that an instance is known by tells how much of a prompt it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex_common.schema.instances import InstanceId

BLOCK_BYTES = 1024
"""Finer blocks tell closer, and cost more to name; engines cache in blocks of some dozen tokens."""

MOST_BLOCKS = 64
"""Blocks named of one prompt: what two prompts share beyond 64 KiB changes no choice."""


def block_names(prompt: bytes) -> tuple[int, ...]:
    """The name of each whole block of a prompt; the same in processes with one hash seed."""
    names: list[int] = []
    name = 0
    for start in range(
        0, min(len(prompt), BLOCK_BYTES * MOST_BLOCKS) - BLOCK_BYTES + 1, BLOCK_BYTES
    ):
        name = hash((name, prompt[start : start + BLOCK_BYTES]))
        names.append(name)
    return tuple(names)


class Affinity:
    """Remembers where blocks were seen last, the most recent ones.

    Args:
        most: blocks that are remembered; some 200 bytes each.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._seen: dict[int, InstanceId] = {}

    def remember(self, names: Sequence[int], instance: InstanceId) -> None:
        """A prompt with these blocks went to this instance."""
        for name in names:
            self._seen.pop(name, None)
            self._seen[name] = instance
        while len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]

    def matches(self, names: Sequence[int], instances: Sequence[InstanceId]) -> dict[int, float]:
        """The share of a prompt that instances have probably cached, by their position; the rest have 0."""
        for at in range(len(names) - 1, -1, -1):
            instance = self._seen.get(names[at])
            if instance is not None and instance in instances:
                return {instances.index(instance): (at + 1) / len(names)}
        return {}
