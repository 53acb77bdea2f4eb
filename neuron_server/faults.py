"""Troubles that the driver reported while the neuron ran: told at once, and kept as warnings where a card has them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator

from cortex_common.hardware import Device, HostWarning
from neuron_server.core.instance import Instance
from neuron_server.core.xid import is_of_engine, meaning
from neuron_server.hardware.host import Reading
from neuron_server.journal import Journal


class Faults:
    """XID errors since the neuron's start.

    Args:
        journal: told of each.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._devices: dict[str, Device] = {}
        self._counts: Counter[tuple[str, int]] = Counter()

    def enter(self, reading: Reading, instances: Collection[Instance]) -> None:
        """Take up what a reading brought; each reading once."""
        for device, sample in zip(reading.devices, reading.samples, strict=True):
            here = [str(i.id) for i in instances if device.index in i.devices]
            for xid in sample.xids:
                self._journal.note(
                    "xid_error",
                    logging.WARNING,
                    device=device.index,
                    xid=xid,
                    meaning=meaning(xid),
                    instances=", ".join(here) or None,
                )
                self._devices[device.uuid] = device
                self._counts[device.uuid, xid] += 1

    def warnings(self) -> Iterator[HostWarning]:
        """One for each kind of error that a card had; an engine's own faults are no trouble of the host."""
        for (uuid, xid), count in self._counts.items():
            if is_of_engine(xid):
                continue
            device, times = self._devices[uuid], "once" if count == 1 else f"{count} times"
            yield HostWarning(
                code="xid_error",
                message=f"GPU {device.index} ({device.name}): XID {xid}, {times} since the neuron started: "
                f"{meaning(xid)}",
            )
