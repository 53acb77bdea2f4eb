"""XID errors: what the driver tells of a card's troubles, often before anything else shows them.

Facts: events are queued by the driver from registration on, and a wait returns at once when one is queued; cards of
some kinds (and all under WSL) have no events; a lost card may fail any call.
"""

from __future__ import annotations

import contextlib
from typing import Any

_OF_ENGINES = {
    13: "a kernel of the engine did what it may not",
    31: "the engine touched memory that is not its own",
    43: "the engine's work was stopped after an error of its own",
    45: "the engine's work was cleaned up after its end or another error",
    68: "the engine's video decoding failed",
    109: "the engine's work did not let the GPU switch away",
}
_OF_CARDS = {
    48: "uncorrectable memory error: reset the GPU, replace it when this comes back",
    62: "the GPU's own processor halted: reset the GPU",
    63: "a bad row of memory is to be remapped: reset the GPU at the next occasion",
    64: "a bad row of memory could not be remapped: replace the GPU",
    74: "NVLink error: reset the GPUs, check bridges and switches when this comes back",
    79: "the GPU has fallen off the bus: restart the host, check power, cooling and seating",
    92: "many corrected memory errors: watch this GPU",
    94: "uncorrectable memory error, contained to one engine: reset the GPU at the next occasion",
    95: "uncorrectable memory error, not contained: reset the GPU",
    119: "the GPU's system processor does not answer: reset the GPU or restart the host",
    120: "the GPU's system processor failed: reset the GPU or restart the host",
    140: "uncorrectable memory errors: reset the GPU",
}


def is_of_engine(xid: int) -> bool:
    """Whether an engine's own fault is the usual cause, so that nothing on the host needs mending."""
    return xid in _OF_ENGINES


def meaning(xid: int) -> str:
    """What an XID says and asks for, for people."""
    return _OF_ENGINES.get(xid) or _OF_CARDS.get(xid) or "look it up in NVIDIA's XID catalogue"


_WAIT_MS = 1
_MOST_AT_ONCE = 32
"""A card in trouble may tell faster than it is read; the rest comes with the next reading."""


class XidListener:
    """The XID events of some cards; a card without events has none, and nothing here ever fails.

    Each card has an event set of its own, so that no card that may be lost must be asked whose an event is.

    Args:
        library: the pynvml module, or something of its shape.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._sets: dict[str, Any] = {}

    def listen(self, uuid: str, handle: Any) -> None:
        """Begin to collect a card's events."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
            self._sets[uuid] = events
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError:
                self._free(self._sets.pop(uuid))

    def news(self, uuid: str) -> tuple[int, ...]:
        """The XIDs of a card since the last call, the oldest first."""
        events = self._sets.get(uuid)
        found: list[int] = []
        if events is None:
            return ()
        with contextlib.suppress(self._nvml.NVMLError):  # a timeout: nothing more is queued
            while len(found) < _MOST_AT_ONCE:
                event = self._nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                if event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                    found.append(int(event.eventData))
        return tuple(found)

    def close(self) -> None:
        """Give all event sets back."""
        for events in self._sets.values():
            self._free(events)
        self._sets.clear()

    def _free(self, events: Any) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlEventSetFree(events)
