"""A line for each device: its memory as a bar cut by model, how busy and how warm it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from cortex_cli.tui.bars import Ghost, Part, Segment, segment_text, segments, shares, spark
from cortex_cli.tui.bars import colors as assign_colors
from cortex_cli.tui.history import History
from cortex_cli.tui.theme import model_color
from cortex_common.fleet import DeviceView, FleetSnapshot, NodeState, NodeView
from cortex_common.hardware import DeviceHealth
from cortex_common.units import show_mib

_NARROW = 80
_HISTORY = 12
_WARN, _CRITICAL = 0.85, 0.95


class DevicePanel(Static):
    """All devices of the fleet.

    Args:
        ascii_only: draw with ASCII alone.
    """

    def __init__(self, *, ascii_only: bool) -> None:
        super().__init__(id="devices")
        self._ascii = ascii_only
        self._drawn = Text()
        self._shape = (0, 0)
        self._colors: dict[str, int] = {}

    def show(
        self, snapshot: FleetSnapshot, history: History, ghosts: Sequence[Ghost], *, compact: bool
    ) -> None:
        """Draw the devices.

        Args:
            snapshot: the fleet.
            history: for the curves of utilisation.
            ghosts: memory that a planned action would take.
            compact: one line a node, for short terminals.
        """
        width = max(20, self.size.width or self.app.size.width - 2)
        held = [i.model for i in snapshot.instances()] + [g.model for g in ghosts]
        self._colors = assign_colors(held, self._colors)
        lines: list[Text] = []
        for node in snapshot.nodes:
            if compact or node.state is not NodeState.UP or not node.devices:
                lines.append(self._node_line(node, width))
            else:
                lines += [
                    self._device_line(
                        node, d, history, [g for g in ghosts if _on(g, node, d)], width
                    )
                    for d in node.devices
                ]
        drawn = Text("\n").join(lines) if lines else Text("no nodes", style="dim")
        if drawn != self._drawn or drawn.spans != self._drawn.spans:
            self._drawn = drawn
            # A new layout costs more than the picture.
            shape = (len(lines), max(map(len, lines), default=0))
            self.update(drawn, layout=shape != self._shape)
            self._shape = shape

    def _node_line(self, node: NodeView, width: int) -> Text:
        colors = self.app.theme_variables
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{node.name} ", style="bold")
        if node.state is not NodeState.UP:
            line.append(f"{node.state} {node.reason or ''}", style=colors["error"])
            return line
        used = sum(d.vram_used_mb for d in node.devices)
        total = sum(d.vram_total_mb for d in node.devices)
        text = f" {show_mib(used)}/{show_mib(total)} {len(node.devices)} devices"
        share = used / total if total else 0.0
        room = max(4, width - len(line) - len(text) - 2)
        filled = round(room * min(1.0, share))
        fill, empty = ("#", ".") if self._ascii else ("█", "░")
        line.append("[" + fill * filled + empty * (room - filled) + "]", style=self._heat(share))
        line.append(text)
        return line

    def _device_line(
        self, node: NodeView, device: DeviceView, history: History, ghosts: list[Ghost], width: int
    ) -> Text:
        colors = self.app.theme_variables
        key = f"{node.name}/{device.index}"
        cordoned = "c" if node.cordoned else " "
        line = Text(f"{key:<9.9} {cordoned} ", no_wrap=True, overflow="crop")
        if device.health is DeviceHealth.LOST:
            line.append(f"lost: {device.reason or 'no reason given'}", style=colors["error"])
            return line
        share = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else 0.0
        numbers = f" {show_mib(device.vram_used_mb):>6}/{show_mib(device.vram_total_mb):<6}"
        tail = self._tail(key, device, history) if width >= _NARROW else Text()
        room = max(6, width - len(line) - len(numbers) - len(tail) - 2)
        line.append("[" if self._ascii else "▐", style="dim")
        for segment in segments(shares(device, node.instances, ghosts), room):
            text = segment_text(segment, ascii_only=self._ascii)
            line.append(text, style=self._style(segment))
        line.append("]" if self._ascii else "▌", style="dim")
        line.append(numbers, style=self._heat(share))
        line.append_text(tail)
        return line

    def _tail(self, key: str, device: DeviceView, history: History) -> Text:
        busy = history.utilization.get(key, ())
        curve = spark(busy, 0.0, 100.0, _HISTORY, ascii_only=self._ascii)
        now = "  –" if device.utilization_pct is None else f"{device.utilization_pct:3d}%"
        warm = "" if device.temp_c is None else f" {device.temp_c}°C"
        tail = Text(f" {curve} ", style=self.app.theme_variables["secondary"])
        tail.append(f"{now}{warm:<6}")
        return tail

    def _heat(self, share: float) -> str:
        colors = self.app.theme_variables
        if share >= _CRITICAL:
            return colors["error"]
        return colors["warning"] if share >= _WARN else ""

    def _style(self, segment: Segment) -> str:
        colors = self.app.theme_variables
        match segment.part:
            case Part.MODEL | Part.LOADING:
                return model_color(self._colors.get(segment.label, 0), colors)
            case Part.GHOST:
                return f"bold {colors['warning']}"
            case Part.FREE:
                return ""
            case _:
                return "dim"


def _on(ghost: Ghost, node: NodeView, device: DeviceView) -> bool:
    return (ghost.node, ghost.device) == (node.name, device.index)
