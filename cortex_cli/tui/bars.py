"""Bars and histories as text of a fixed width. Pure; scales are fixed, so that a bar means the same every second."""

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
"""How many colours models share."""


class Part(StrEnum):
    """What a piece of a memory bar stands for."""

    MODEL = "model"
    LOADING = "loading"
    FOREIGN = "foreign"
    RESERVED = "reserved"
    OTHER = "other"
    GHOST = "ghost"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a device's memory.

    Attributes:
        mb: MiB.
        label: the model, where it is one.
    """

    part: Part
    mb: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A share as so many cells of a bar."""

    part: Part
    label: str
    width: int


@dataclass(frozen=True, slots=True)
class Ghost:
    """Memory that a planned action would take on a device, or give back when negative.

    Attributes:
        device: index on its node.
        mb: MiB.
    """

    node: str
    device: int
    model: str
    mb: int


def shares(
    device: DeviceView, instances: Sequence[InstanceView], ghosts: Sequence[Ghost] = ()
) -> list[Share]:
    """How a device's memory is divided; the shares sum up to its total.

    Args:
        device: with its reading.
        instances: of its node; those elsewhere are passed over.
        ghosts: what a planned action would add on this device.
    """
    found: list[Share] = []
    left = float(device.vram_total_mb)

    def take(part: Part, mb: float, label: str = "") -> None:
        nonlocal left
        taken = max(0.0, min(left, mb))
        if taken > 0:
            found.append(Share(part, taken, label))
            left -= taken

    for instance in instances:
        if device.index in instance.devices:
            loading = instance.state is InstanceState.LOADING
            take(
                Part.LOADING if loading else Part.MODEL,
                on_device(instance, device.index),
                instance.model,
            )
    take(Part.FOREIGN, device.vram_other_mb)
    promised = sum(s.mb for s in found if s.part is Part.LOADING)
    take(Part.RESERVED, device.vram_reserved_mb - promised)
    # What is measured beyond all that belongs to nobody whom we know: contexts of drivers, caches, leaks.
    take(Part.OTHER, device.vram_used_mb - sum(s.mb for s in found if s.part is not Part.RESERVED))
    for ghost in ghosts:
        take(Part.GHOST, ghost.mb, ghost.model)
    take(Part.FREE, left)
    return found


def on_device(instance: InstanceView, index: int) -> float:
    """MiB of an instance on one of its devices: as measured there, else an even part of the whole."""
    if index not in instance.devices:
        return 0.0
    position = instance.devices.index(index)
    if position < len(instance.vram_by_device):
        return instance.vram_by_device[position]
    return instance.vram_used_mb / len(instance.devices)


def segments(found: Sequence[Share], width: int) -> list[Segment]:
    """Shares as cells; the widths sum up to `width`, each off by less than one cell from its exact place."""
    total = sum(s.mb for s in found)
    if total <= 0 or width <= 0:
        return [Segment(Part.FREE, "", width)] if width > 0 else []
    drawn: list[Segment] = []
    passed, edge = 0.0, 0
    for share in found:
        passed += share.mb
        following = round(width * passed / total)
        if following > edge:
            drawn.append(Segment(share.part, share.label, following - edge))
        edge = following
    return drawn


def spark(
    values: Sequence[float | None], lo: float, hi: float, width: int, *, ascii_only: bool
) -> str:
    """The last `width` values as levels between `lo` and `hi`, the newest at the right; unknown is blank."""
    levels = _ASCII_LEVELS if ascii_only else _BLOCKS
    cells = [_level(v, lo, hi, levels) for v in values[-width:]] if width > 0 else []
    return "".join(cells).rjust(max(0, width))


def _level(value: float | None, lo: float, hi: float, levels: str) -> str:
    if value is None or hi <= lo:
        return " "
    share = min(1.0, max(0.0, (value - lo) / (hi - lo)))
    # Nothing but zero looks like zero.
    return levels[max(1, round(share * (len(levels) - 1)))] if share > 0 else levels[1]


def colors(models: Iterable[str], before: Mapping[str, int]) -> dict[str, int]:
    """A colour of the palette for each model: the one it has, else its own by name, else one that is free."""
    names = sorted(set(models))
    found = {name: before[name] for name in names if name in before}
    for name in names:
        if name not in found:
            own = zlib.crc32(name.encode())
            wheel = [(own + step) % PALETTE for step in range(PALETTE)]
            taken = set(found.values())
            found[name] = next((c for c in wheel if c not in taken), wheel[0])
    return found


def short_name(model: str) -> str:
    """A model's name without its owner: what fits into a bar."""
    return model.rsplit("/", 1)[-1]


_FILL = {
    Part.MODEL: "█",
    Part.LOADING: "▓",
    Part.FOREIGN: "▒",
    Part.OTHER: "▒",
    Part.RESERVED: "░",
    Part.GHOST: "▞",
    Part.FREE: " ",
}
_ASCII_FILL = {
    Part.MODEL: "#",
    Part.LOADING: "+",
    Part.FOREIGN: "x",
    Part.OTHER: "x",
    Part.RESERVED: ".",
    Part.GHOST: "/",
    Part.FREE: " ",
}
_NAMED = {Part.FOREIGN: "foreign", Part.RESERVED: "promised", Part.OTHER: "other"}


def segment_text(segment: Segment, *, ascii_only: bool) -> str:
    """A segment as text of exactly its width: its label in the middle of its pattern, where there is room."""
    fill = (_ASCII_FILL if ascii_only else _FILL)[segment.part]
    label = short_name(segment.label) if segment.label else _NAMED.get(segment.part, "")
    room = segment.width - 2
    if label and room >= 3:
        # The pattern on both sides tells where one model ends, without colour too.
        shown = label if len(label) <= room else label[: room - 1] + ("~" if ascii_only else "…")
        return shown.center(segment.width, fill)
    return fill * segment.width
