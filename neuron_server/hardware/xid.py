"""XID errors: GPU errors reported by the driver, often the first sign of a problem.

The driver queues events from registration on, and a wait returns immediately if one is queued. Some GPUs (and all under
WSL) do not support events, and any call can fail for a lost GPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

_ENGINE_FAULTS = {
    13: "a kernel of the engine raised an exception",
    31: "the engine accessed invalid memory",
    43: "the engine's work was stopped after an error in the engine",
    45: "the engine's work was removed after the engine ended or failed",
    68: "the engine's video decoding failed",
    109: "the engine's work did not yield the GPU in time for a context switch",
}
_GPU_FAULTS = {
    48: "uncorrectable memory error: reset the GPU, and replace it if the error recurs",
    62: "the GPU's internal microcontroller halted: reset the GPU",
    63: "a faulty memory row will be remapped: reset the GPU at the next opportunity",
    64: "a faulty memory row could not be remapped: replace the GPU",
    74: "NVLink error: reset the GPUs, and check bridges and switches if the error recurs",
    79: "the GPU has fallen off the bus: restart the host, check power, cooling and seating",
    92: "high rate of corrected memory errors: monitor this GPU",
    94: "uncorrectable memory error, contained to one engine: reset the GPU at the next opportunity",
    95: "uncorrectable memory error, not contained: reset the GPU",
    119: "the GPU System Processor (GSP) does not respond: reset the GPU or restart the host",
    120: "the GPU System Processor (GSP) failed: reset the GPU or restart the host",
    140: "uncorrectable memory errors: reset the GPU",
}


def is_engine_fault(xid: int) -> bool:
    """Return whether an XID is usually caused by the engine, so that the host needs no attention."""
    return xid in _ENGINE_FAULTS


def describe_xid(xid: int) -> str:
    """Return a description of an XID with the recommended action."""
    return _ENGINE_FAULTS.get(xid) or _GPU_FAULTS.get(xid) or "see NVIDIA's XID documentation"


_WAIT_MS = 1
_MAX_PER_POLL = 32
"""A faulty GPU can report errors faster than they are read; the rest follows with the next poll."""


class XidListener:
    """Collects the XID events of GPUs; never raises, and reports nothing for a GPU without event support.

    Each GPU has its own event set, so that events can be attributed without querying a GPU that may be lost.

    Args:
        library: the pynvml module, or a compatible object.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._sets: dict[str, Any] = {}

    def listen(self, uuid: str, handle: Any) -> None:
        """Start collecting a GPU's events."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
            self._sets[uuid] = events
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError:
                self._free(self._sets.pop(uuid))

    def poll(self, uuid: str) -> tuple[int, ...]:
        """Return the XIDs of a GPU since the last call, oldest first."""
        events = self._sets.get(uuid)
        xids: list[int] = []
        if events is None:
            return ()
        with contextlib.suppress(self._nvml.NVMLError):  # a timeout means that the queue is empty
            while len(xids) < _MAX_PER_POLL:
                event = self._nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                if event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                    xids.append(int(event.eventData))
        return tuple(xids)

    def close(self) -> None:
        """Free all event sets."""
        for events in self._sets.values():
            self._free(events)
        self._sets.clear()

    def _free(self, events: Any) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlEventSetFree(events)
