"""HTTP probes of engines, and the environment that selects their devices."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection, Sequence
from typing import Any, Literal

import httpx

from cortex_common.client.control import tls_verify
from cortex_common.config.neuron import HarnessEntry
from cortex_common.schema.hardware import Device, DeviceKind


def device_environment(
    devices: Sequence[Device], ids: Literal["uuid", "index"] = "uuid"
) -> dict[str, str]:
    """Return the variables that restrict an engine to its GPUs; no GPU is visible on the cpu device.

    CUDA's default order puts the fastest GPU first, while NVML uses PCI bus order; PCI_BUS_ID makes both agree. Inside
    the engine its devices are always 0, 1, ...
    """
    gpus = [device for device in devices if device.kind is DeviceKind.CUDA]
    names = [gpu.uuid if ids == "uuid" else str(pci_ordinal(gpu)) for gpu in gpus]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}


def pci_ordinal(gpu: Device) -> int:
    """Return a GPU's number in PCI bus order, which differs from its index if another GPU did not respond at start."""
    return gpu.index if gpu.ordinal is None else gpu.ordinal


def gpu_count(devices: Sequence[Device]) -> int:
    """Return the number of GPUs among some devices."""
    return sum(device.kind is DeviceKind.CUDA for device in devices)


_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_SERVER_ERROR = 500
_TOKEN_TIMEOUT_S = 60.0
"""A busy engine answers once a slot is free; one that takes longer than this for a token is of no use."""

_TIMEOUT = httpx.Timeout(5.0, connect=1.0)


def engine_tls(entries: Sequence[HarnessEntry]) -> ssl.SSLContext | bool:
    """Return httpx's `verify` for these engines; most need no TLS context, and creating one takes 20 ms."""
    return next((tls for entry in entries if (tls := tls_verify(entry.url or ""))), False)


def engine_client(
    entries: Sequence[HarnessEntry] = (), auth: httpx.Auth | None = None
) -> httpx.AsyncClient:
    """Return the HTTP client for all probes of engines, which ignores the host's proxy settings.

    Args:
        entries: the harnesses' settings.
        auth: adds the engines' keys.
    """
    return httpx.AsyncClient(
        auth=auth,
        timeout=_TIMEOUT,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
        verify=engine_tls(entries),
    )


async def get(http: httpx.AsyncClient, url: str) -> httpx.Response | None:
    """Return the response, with any status; None if the engine can't be reached or times out."""
    try:
        return await http.get(url)
    except httpx.HTTPError:
        return None


async def answers_token_request(
    http: httpx.AsyncClient, url: str, model: str, routes: Collection[str]
) -> bool:
    """Request one token; return whether the engine answers in time, and not with an error of its own.

    Args:
        http: the client for probes.
        url: base URL of the engine.
        model: the name that the engine expects.
        routes: its routes, see `supports_token_request`.
    """
    body: dict[str, object] = {"model": model, "max_tokens": 1}
    if _CHAT in routes:
        route, body["messages"] = _CHAT, [{"role": "user", "content": "hi"}]
    else:
        route, body["prompt"] = _COMPLETIONS, "hi"
    try:
        async with asyncio.timeout(_TOKEN_TIMEOUT_S):
            response = await http.post(url + route, json=body, timeout=_TOKEN_TIMEOUT_S)
    except (httpx.HTTPError, TimeoutError):
        return False
    return response.status_code < _SERVER_ERROR


def supports_token_request(routes: Collection[str]) -> bool:
    """Return whether an engine with these routes can be asked for a token."""
    return _CHAT in routes or _COMPLETIONS in routes


async def get_json(http: httpx.AsyncClient, url: str) -> dict[str, Any] | None:
    """Return the JSON object of a 200 response; None for any other response."""
    response = await get(http, url)
    if response is None or response.status_code != 200:
        return None
    try:
        content = response.json()
    except (ValueError, RecursionError):  # not JSON, not text, or nested too deeply
        return None
    return content if isinstance(content, dict) else None
