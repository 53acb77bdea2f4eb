"""Asking an engine on loopback something small."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import httpx

from cortex_common.client.control import tls_verify
from cortex_common.config.neuron import HarnessEntry
from cortex_common.schema.hardware import Device, DeviceKind


def device_environment(devices: Sequence[Device]) -> dict[str, str]:
    """Variables that show an engine its GPUs only, by UUID; none at all on the cpu device.

    CUDA's own order puts the fastest card first, NVML counts by PCI bus: with PCI_BUS_ID both agree. Inside the
    engine its devices are always 0, 1, ...
    """
    gpus = [device.uuid for device in devices if device.kind is DeviceKind.CUDA]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def gpu_count(devices: Sequence[Device]) -> int:
    """How many GPUs an engine gets."""
    return sum(device.kind is DeviceKind.CUDA for device in devices)


_TIMEOUT = httpx.Timeout(5.0, connect=1.0)


def engine_tls(entries: Sequence[HarnessEntry]) -> ssl.SSLContext | bool:
    """What httpx takes as `verify` for these engines; most need none, and reading all authorities takes 20 ms."""
    return next((tls for entry in entries if (tls := tls_verify(entry.url or ""))), False)


def engine_client(entries: Sequence[HarnessEntry] = ()) -> httpx.AsyncClient:
    """The client for all probes of a neuron with these harnesses; proxies of the host are not for loopback."""
    return httpx.AsyncClient(
        timeout=_TIMEOUT,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
        verify=engine_tls(entries),
    )


async def get(http: httpx.AsyncClient, url: str) -> httpx.Response | None:
    """The answer, whatever its status; None when the engine can't be reached or does not answer in time."""
    try:
        return await http.get(url)
    except httpx.HTTPError:
        return None


async def get_json(http: httpx.AsyncClient, url: str) -> dict[str, Any] | None:
    """The JSON object of a 200; None for anything else."""
    response = await get(http, url)
    if response is None or response.status_code != 200:
        return None
    try:
        found = response.json()
    except (ValueError, RecursionError):  # no JSON, or no text, or nested too deep
        return None
    return found if isinstance(found, dict) else None
