"""Memory bars and sparklines as text of a fixed width. Pure.

Scales are fixed, so that bars stay comparable over time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cortex_common.schema.fleet import DeviceView, InstanceView
from cortex_common.schema.instances import InstanceState

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_LEVELS = " .:-=+*#@"

PALETTE = 8
"""Number of colors in the model palette."""


class MemoryKind(StrEnum):
    """Kinds of memory in a bar."""

    MODEL = "model"
    LOADING = "loading"
    RESERVED = "reserved"
    OTHER = "other"
    GHOST = "ghost"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a device's memory.

    Attributes:
        mb: size in MiB.
        label: the model that uses it; empty for other kinds.
    """

    kind: MemoryKind
    mb: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A share as a number of cells of a bar."""

    kind: MemoryKind
    label: str
    width: int


@dataclass(frozen=True, slots=True)
class Ghost:
    """Memory that a planned operation would take on a device, or free when negative.

    Attributes:
        device: index on its node.
        mb: size in MiB.
    """

    node: str
    device: int
    model: str
    mb: int


def memory_shares(
    device: DeviceView, instances: Sequence[InstanceView], ghosts: Sequence[Ghost] = ()
) -> list[Share]:
    """Divide a device's memory into shares that sum up to its total.

    Args:
        device: the device with its reading.
        instances: instances of its node; those on other devices are ignored.
        ghosts: memory that a planned operation would take on this device.
    """
    shares: list[Share] = []
    remaining = float(device.vram_total_mb)

    def add(kind: MemoryKind, mb: float, label: str = "") -> None:
        nonlocal remaining
        size = max(0.0, min(remaining, mb))
        if size > 0:
            shares.append(Share(kind, size, label))
            remaining -= size

    for instance in instances:
        if device.index in instance.devices:
            loading = instance.state is InstanceState.LOADING
            add(
                MemoryKind.LOADING if loading else MemoryKind.MODEL,
                memory_on_device(instance, device.index),
                instance.model,
            )
    loading_mb = sum(s.mb for s in shares if s.kind is MemoryKind.LOADING)
    accounted = sum(s.mb for s in shares)
    # Used memory that no instance accounts for, such as driver contexts, caches and leaks, counts as other.
    add(MemoryKind.OTHER, max(device.vram_other_mb, device.vram_used_mb - accounted))
    add(MemoryKind.RESERVED, device.vram_reserved_mb - loading_mb)
    for ghost in ghosts:
        add(MemoryKind.GHOST, ghost.mb, ghost.model)
    add(MemoryKind.FREE, remaining)
    return shares


def memory_on_device(instance: InstanceView, index: int) -> float:
    """Return the MiB of an instance on one of its devices: measured there, else an equal part of its total."""
    if index not in instance.devices:
        return 0.0
    position = instance.devices.index(index)
    if position < len(instance.vram_by_device):
        return instance.vram_by_device[position]
    return instance.vram_used_mb / len(instance.devices)


def segments(shares: Sequence[Share], width: int) -> list[Segment]:
    """Convert shares to cells; the widths sum up to `width`, and each edge is off by less than one cell."""
    total = sum(s.mb for s in shares)
    if total <= 0 or width <= 0:
        return [Segment(MemoryKind.FREE, "", width)] if width > 0 else []
    found: list[Segment] = []
    cumulative, edge = 0.0, 0
    for share in shares:
        cumulative += share.mb
        next_edge = round(width * cumulative / total)
        if next_edge > edge:
            found.append(Segment(share.kind, share.label, next_edge - edge))
        edge = next_edge
    return found


def sparkline(
    values: Sequence[float | None], low: float, high: float, width: int, *, ascii_only: bool
) -> str:
    """Draw the last `width` values as levels between `low` and `high`, newest at the right; None is blank."""
    levels = _ASCII_LEVELS if ascii_only else _BLOCKS
    cells = [_level(v, low, high, levels) for v in values[-width:]] if width > 0 else []
    return "".join(cells).rjust(max(0, width))


def _level(value: float | None, low: float, high: float, levels: str) -> str:
    if value is None or high <= low:
        return " "
    fraction = min(1.0, max(0.0, (value - low) / (high - low)))
    # The lowest visible level is also used for zero, so that a reading differs from a missing one.
    return levels[max(1, round(fraction * (len(levels) - 1)))] if fraction > 0 else levels[1]


def assign_colors(models: Iterable[str], previous: Mapping[str, int]) -> dict[str, int]:
    """Assign palette colors to models: the previous one, else one derived from the name, else an unused one."""
    names = sorted(set(models))
    colors = {name: previous[name] for name in names if name in previous}
    for name in names:
        if name not in colors:
            preferred = zlib.crc32(name.encode())
            candidates = [(preferred + step) % PALETTE for step in range(PALETTE)]
            used = set(colors.values())
            colors[name] = next((c for c in candidates if c not in used), candidates[0])
    return colors


def short_name(model: str) -> str:
    """Return a model's name without its owner, to fit into a bar."""
    return model.rsplit("/", 1)[-1]


_FILL = {
    MemoryKind.MODEL: "█",
    MemoryKind.LOADING: "▓",
    MemoryKind.OTHER: "▒",
    MemoryKind.RESERVED: "░",
    MemoryKind.GHOST: "▞",
    MemoryKind.FREE: " ",
}
_ASCII_FILL = {
    MemoryKind.MODEL: "#",
    MemoryKind.LOADING: "+",
    MemoryKind.OTHER: "x",
    MemoryKind.RESERVED: ".",
    MemoryKind.GHOST: "/",
    MemoryKind.FREE: " ",
}
_KIND_LABELS = {MemoryKind.RESERVED: "reserved", MemoryKind.OTHER: "other"}


def segment_text(segment: Segment, *, ascii_only: bool) -> str:
    """Draw a segment in exactly its width, with its label centered in its pattern if it fits."""
    fill = (_ASCII_FILL if ascii_only else _FILL)[segment.kind]
    label = short_name(segment.label) if segment.label else _KIND_LABELS.get(segment.kind, "")
    available = segment.width - 2
    if label and available >= 3:
        # The pattern on both sides separates neighbouring models without relying on color.
        ellipsis = "~" if ascii_only else "…"
        text = label if len(label) <= available else label[: available - 1] + ellipsis
        return text.center(segment.width, fill)
    return fill * segment.width
