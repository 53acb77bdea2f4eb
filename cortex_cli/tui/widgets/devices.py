"""A line for each device: its memory as a bar cut by model, how busy and how warm it is."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from cortex_cli.render.table import printable
from cortex_cli.tui.bars import Ghost, Part, Segment, segment_text, segments, shares, spark
from cortex_cli.tui.bars import colors as assign_colors
from cortex_cli.tui.history import History
from cortex_cli.tui.theme import ink, model_ink
from cortex_cli.tui.widgets.lines import Lines, Piece, Pieces, joined
from cortex_cli.tui.widgets.table import fitted
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, NodeState, NodeView
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.units import format_mib

_NARROW = 80
_HISTORY = 12
_WARN, _CRITICAL = 0.85, 0.95


class DevicePanel(Lines):
    """All devices of the fleet.

    Args:
        ascii_only: draw with ASCII alone.
    """

    FOCUS_ON_CLICK = False

    def __init__(self, *, ascii_only: bool) -> None:
        super().__init__("devices")
        self._ascii = ascii_only
        self._lines: list[tuple[NodeView, DeviceView | str | None]] = []
        self._ghosts: Sequence[Ghost] = ()
        self._history = History()
        self._colors: dict[str, int] = {}

    def show(
        self,
        snapshot: FleetSnapshot,
        history: History,
        ghosts: Sequence[Ghost],
        *,
        compact: bool,
        warnings: bool,
    ) -> None:
        """Draw the devices.

        Args:
            snapshot: the fleet.
            history: for the curves of utilisation.
            ghosts: memory that a planned action would take.
            compact: one line a node, for short terminals.
            warnings: below a node's devices what it finds wrong with its host.
        """
        held = [i.model for i in snapshot.instances()] + [g.model for g in ghosts]
        self._colors = assign_colors(held, self._colors)
        self._history, self._ghosts = history, ghosts
        self._lines = []
        for node in snapshot.nodes:
            if compact or node.state is not NodeState.UP or not node.devices:
                self._lines.append((node, None))
            else:
                self._lines += [(node, device) for device in node.devices]
            if warnings:
                self._lines += [(node, line) for line in self._warnings(node)]
        self.redraw(max(1, len(self._lines)))

    def pieces(self, index: int) -> Pieces:
        """See `Lines.pieces`."""
        if not self._lines:
            return (("no nodes", "dim"),)
        node, what = self._lines[index]
        width = max(20, self.scrollable_content_region.width or self.app.size.width - 2)
        match what:
            case None:
                return joined(self._node(node, width))
            case str():
                return ((fitted(what, width), ink(self.app, "warning")),)
            case _:
                return joined(self._device(node, what, width))

    def _warnings(self, node: NodeView) -> list[str]:
        width = max(20, self.app.size.width - 2)
        texts = (printable(f"{node.name} ! {warning}") for warning in node.warnings)
        return [line for text in texts for line in wrap(text, width, subsequent_indent="  ")]

    def _node(self, node: NodeView, width: int) -> list[Piece]:
        name = f"{node.name} "
        if node.state is not NodeState.UP:
            why = f"{node.state} {node.reason or ''}"
            room = max(1, width - len(name))
            return [(name, "bold"), (fitted(why, room), ink(self.app, "error"))]
        used = sum(d.vram_used_mb for d in node.devices)
        total = sum(d.vram_total_mb for d in node.devices)
        text = f" {format_mib(used)}/{format_mib(total)} {len(node.devices)} devices"
        share = used / total if total else 0.0
        room = max(4, width - len(name) - len(text) - 2)
        filled = round(room * min(1.0, share))
        fill, empty = ("#", ".") if self._ascii else ("█", "░")
        bar = f"[{fill * filled}{empty * (room - filled)}]"
        return [(name, "bold"), (bar, self._heat(share)), (text, "")]

    def _device(self, node: NodeView, device: DeviceView, width: int) -> list[Piece]:
        key = f"{node.name}/{device.index}"
        name = f"{key:<9.9} {'c' if node.cordoned else ' '} "
        if device.health is DeviceHealth.LOST:
            why = f"lost: {device.reason or 'no reason given'}"
            return [(name, ""), (why, ink(self.app, "error"))]
        share = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else 0.0
        numbers = f" {format_mib(device.vram_used_mb):>6}/{format_mib(device.vram_total_mb):<6}"
        tail = self._tail(key, device) if width >= _NARROW else []
        room = max(6, width - len(name) - len(numbers) - sum(len(t) for t, _ in tail) - 2)
        left, right = ("[", "]") if self._ascii else ("▐", "▌")
        ghosts = [g for g in self._ghosts if (g.node, g.device) == (node.name, device.index)]
        bar = [
            (segment_text(segment, ascii_only=self._ascii), self._style(segment))
            for segment in segments(shares(device, node.instances, ghosts), room)
        ]
        return [
            *((name, ""), (left, "dim"), *bar, (right, "dim"), (numbers, self._heat(share))),
            *tail,
        ]

    def _tail(self, key: str, device: DeviceView) -> list[Piece]:
        busy = self._history.utilization.get(key, ())
        curve = spark(busy, 0.0, 100.0, _HISTORY, ascii_only=self._ascii)
        now = "  –" if device.utilization_pct is None else f"{device.utilization_pct:3d}%"
        warm = "" if device.temp_c is None else f" {device.temp_c}°C"
        return [(f" {curve} {now}{warm:<6}", ink(self.app, "secondary"))]

    def _heat(self, share: float) -> str:
        if share >= _CRITICAL:
            return ink(self.app, "error")
        return ink(self.app, "warning") if share >= _WARN else ""

    def _style(self, segment: Segment) -> str:
        match segment.part:
            case Part.MODEL | Part.LOADING:
                return model_ink(self.app, self._colors.get(segment.label, 0))
            case Part.GHOST:
                return f"bold {ink(self.app, 'warning')}"
            case Part.FREE:
                return ""
            case _:
                return "dim"
