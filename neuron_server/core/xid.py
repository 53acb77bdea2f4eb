"""What the driver's XID numbers mean: whose trouble one is, and what to do. Pure.

Source: NVIDIA's catalogue of XID errors, docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

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
