"""One line per device: memory as a bar divided by model, utilization and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from typing_extensions import override

from cortex_cli.terminal import neutralize_line
from cortex_cli.tui.bars import (
    Ghost,
    MemoryKind,
    Segment,
    assign_colors,
    memory_shares,
    segment_text,
    segments,
    sparkline,
)
from cortex_cli.tui.history import History
from cortex_cli.tui.theme import model_color, theme_color
from cortex_cli.tui.widgets.lines import Lines, Span, Spans, merge
from cortex_cli.tui.widgets.table import fit
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
        """Show the devices.

        Args:
            snapshot: the fleet.
            history: readings for the sparklines of utilization.
            ghosts: memory that a planned operation would take.
            compact: draw one line per node, for short terminals.
            warnings: show the warnings of each node below its devices.
        """
        models = [i.model for i in snapshot.instances()] + [g.model for g in ghosts]
        self._colors = assign_colors(models, self._colors)
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

    @override
    def spans(self, index: int) -> Spans:
        if not self._lines:
            return (("no nodes", "dim"),)
        node, content = self._lines[index]
        width = max(20, self.scrollable_content_region.width or self.app.size.width - 2)
        match content:
            case None:
                return merge(self._node(node, width))
            case str():
                return ((fit(content, width), theme_color(self.app, "warning")),)
            case _:
                return merge(self._device(node, content, width))

    def _warnings(self, node: NodeView) -> list[str]:
        width = max(20, self.app.size.width - 2)
        texts = (neutralize_line(f"{node.name} ! {warning}") for warning in node.warnings)
        return [line for text in texts for line in wrap(text, width, subsequent_indent="  ")]

    def _node(self, node: NodeView, width: int) -> list[Span]:
        name = f"{node.name} "
        if node.state is not NodeState.UP:
            reason = f"{node.state} {node.reason or ''}"
            available = max(1, width - len(name))
            return [(name, "bold"), (fit(reason, available), theme_color(self.app, "error"))]
        used = sum(d.vram_used_mb for d in node.devices)
        total = sum(d.vram_total_mb for d in node.devices)
        text = f" {format_mib(used)}/{format_mib(total)} {len(node.devices)} devices"
        share = used / total if total else 0.0
        cells = max(4, width - len(name) - len(text) - 2)
        filled = round(cells * min(1.0, share))
        fill, empty = ("#", ".") if self._ascii else ("█", "░")
        bar = f"[{fill * filled}{empty * (cells - filled)}]"
        return [(name, "bold"), (bar, self._threshold_color(share)), (text, "")]

    def _device(self, node: NodeView, device: DeviceView, width: int) -> list[Span]:
        key = f"{node.name}/{device.index}"
        name = f"{key:<9.9} {'c' if node.cordoned else ' '} "
        if device.health is DeviceHealth.LOST:
            reason = f"lost: {device.reason or 'unknown reason'}"
            return [(name, ""), (reason, theme_color(self.app, "error"))]
        share = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else 0.0
        numbers = f" {format_mib(device.vram_used_mb):>6}/{format_mib(device.vram_total_mb):<6}"
        tail = self._tail(key, device) if width >= _NARROW else []
        cells = max(6, width - len(name) - len(numbers) - sum(len(t) for t, _ in tail) - 2)
        left, right = ("[", "]") if self._ascii else ("▐", "▌")
        ghosts = [g for g in self._ghosts if (g.node, g.device) == (node.name, device.index)]
        bar = [
            (segment_text(segment, ascii_only=self._ascii), self._style(segment))
            for segment in segments(memory_shares(device, node.instances, ghosts), cells)
        ]
        return [
            *(
                (name, ""),
                (left, "dim"),
                *bar,
                (right, "dim"),
                (numbers, self._threshold_color(share)),
            ),
            *tail,
        ]

    def _tail(self, key: str, device: DeviceView) -> list[Span]:
        series = self._history.utilization.get(key, ())
        graph = sparkline(series, 0.0, 100.0, _HISTORY, ascii_only=self._ascii)
        utilization = "  –" if device.utilization_pct is None else f"{device.utilization_pct:3d}%"
        temperature = "" if device.temp_c is None else f" {device.temp_c}°C"
        return [(f" {graph} {utilization}{temperature:<6}", theme_color(self.app, "secondary"))]

    def _threshold_color(self, share: float) -> str:
        if share >= _CRITICAL:
            return theme_color(self.app, "error")
        return theme_color(self.app, "warning") if share >= _WARN else ""

    def _style(self, segment: Segment) -> str:
        match segment.kind:
            case MemoryKind.MODEL | MemoryKind.LOADING:
                return model_color(self.app, self._colors.get(segment.label, 0))
            case MemoryKind.GHOST:
                return f"bold {theme_color(self.app, 'warning')}"
            case MemoryKind.FREE:
                return ""
            case _:
                return "dim"
