"""How GPUs are connected, which decides how fast a model runs that is split across them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_HOST_BRIDGE = 30
_NUMA_NODE = 40
_NVLINK_CAPABILITY = 2
_STATUS_OK = 0


def read_links(nvml: Any, handles: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the kind of link between each two GPUs, by UUID; none where the driver does not report it.

    The kinds are "nvlink", "pcie" (below one host bridge), "numa" (one NUMA node) and "system".

    Args:
        nvml: the pynvml module.
        handles: NVML handles by UUID.
    """
    links: dict[str, dict[str, str]] = {uuid: {} for uuid in handles}
    for one, other in itertools.combinations(handles, 2):
        kind = _link(nvml, handles[one], handles[other])
        if kind is not None:
            links[one][other] = links[other][one] = kind
    return links


def _link(nvml: Any, one: Any, other: Any) -> str | None:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(one, other, _NVLINK_CAPABILITY)
    except nvml.NVMLError:
        status = None
    if status == _STATUS_OK:
        return "nvlink"
    try:
        ancestor = int(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    except nvml.NVMLError:
        return None
    if ancestor <= _HOST_BRIDGE:
        return "pcie"
    return "numa" if ancestor <= _NUMA_NODE else "system"


def mig_handles(nvml: Any, handle: Any) -> Sequence[Any]:
    """Return the handles of a GPU's MIG devices; slots that are not used are left out."""
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return ()
    found = []
    for slot in range(count):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))
        except nvml.NVMLError:
            continue
    return tuple(found)
