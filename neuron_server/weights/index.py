"""What is known about a model's weights before it is loaded: from this host's disk, or from the Hugging Face hub.

A hub repository is looked up in the local cache first. The hub itself is asked like the engine would ask it:
`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` of the engine's environment apply.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from cortex_common.schema.instances import LoadSpec
from cortex_common.units import bytes_to_mib
from neuron_server.embedded_engine.gguf_header import metadata, partial_metadata
from neuron_server.weights.files import directory_sizes, local_path
from neuron_server.weights.selection import (
    gguf_models,
    is_later_shard,
    loaded_files,
    with_shards,
)
from neuron_server.weights.shape import ModelShape, shape_from_config, shape_from_gguf

_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_HEADER_BYTES = 512 * 1024
"""The architecture precedes the vocabulary in a GGUF header, so its first part suffices."""
_TIMEOUT = httpx.Timeout(5.0, connect=3.0)


@dataclass(frozen=True, slots=True)
class WeightIndex:
    """The weights that an engine would load.

    Attributes:
        weights_mb: their MiB.
        is_gguf: they are a GGUF file.
        shape: what the memory of the context depends on; None if unknown.
    """

    weights_mb: int
    is_gguf: bool
    shape: ModelShape | None = None


async def find_weights(spec: LoadSpec, env: Mapping[str, str]) -> WeightIndex | None:
    """Return what is known about the weights of a spec; None if they are neither here nor on the hub.

    Args:
        spec: the load.
        env: variables that its engine gets in addition to those of this process.
    """
    environment = {**os.environ, **env, **spec.env}
    path = await asyncio.to_thread(_local, spec, environment)
    if path is not None:
        return await asyncio.to_thread(_read_local, path, spec)
    source = spec.source or spec.model_id
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline or not _REPOSITORY.match(source):
        return None
    try:
        async with _hub_client(environment) as hub:
            return await _read_hub(hub, source, spec)
    except (httpx.HTTPError, ValueError):
        return None  # the hub is an aid: without it, the size is unknown


def _local(spec: LoadSpec, environment: Mapping[str, str]) -> Path | None:
    """Return the path of a spec's weights, or of the complete snapshot of its repository in the hub's cache."""
    if (path := local_path(spec)) is not None:
        return path
    source = spec.source or spec.model_id
    if not _REPOSITORY.match(source):
        return None
    folder = _hub_cache(environment) / f"models--{source.replace('/', '--')}"
    try:
        if any((folder / "blobs").glob("*.incomplete")):
            return None
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        path = snapshot / spec.file if spec.file is not None else snapshot
        return path if path.exists() else None
    except OSError:
        return None


def _hub_cache(environment: Mapping[str, str]) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if directory := environment.get(name):
            return Path(directory).expanduser()
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


def _read_local(path: Path, spec: LoadSpec) -> WeightIndex | None:
    directory = path if path.is_dir() else path.parent
    sizes = directory_sizes(directory)
    names = loaded_files(sizes, spec.quant) if path.is_dir() else _file_set(path.name, sizes)
    if not (weights := sum(sizes.get(name, 0) for name in names)):
        return None
    is_gguf = any(name.endswith(".gguf") for name in names)
    shape = _local_gguf_shape(directory, names) if is_gguf else _local_config_shape(directory)
    return WeightIndex(bytes_to_mib(weights), is_gguf, shape)


def _file_set(name: str, sizes: Mapping[str, int]) -> frozenset[str]:
    return frozenset(with_shards(name, (n for n in sizes if "/" not in n)))


def _local_gguf_shape(directory: Path, names: frozenset[str]) -> ModelShape | None:
    first = next((name for name in sorted(names) if not is_later_shard(name)), None)
    try:
        return shape_from_gguf(metadata(directory / first)) if first is not None else None
    except (OSError, ValueError):
        return None


def _local_config_shape(directory: Path) -> ModelShape | None:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return shape_from_config(config) if isinstance(config, dict) else None


def _hub_client(environment: Mapping[str, str]) -> httpx.AsyncClient:
    token = environment.get("HF_TOKEN")
    return httpx.AsyncClient(
        base_url=environment.get("HF_ENDPOINT") or "https://huggingface.co",
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=_TIMEOUT,
        follow_redirects=True,
    )


async def _read_hub(hub: httpx.AsyncClient, repository: str, spec: LoadSpec) -> WeightIndex | None:
    """Return what the hub knows about a repository.

    Raises:
        httpx.HTTPError: the hub can't be reached.
        ValueError: it answered something else.
    """
    listing = await hub.get(f"/api/models/{repository}/tree/main", params={"recursive": "true"})
    listing.raise_for_status()
    entries = listing.json()
    sizes = {
        str(entry["path"]): int(entry["size"])
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and entry.get("type") == "file" and "path" in entry
    }
    names = _file_set(spec.file, sizes) if spec.file else _hub_files(sizes, spec.quant)
    if not (weights := sum(sizes.get(name, 0) for name in names)):
        return None
    is_gguf = any(name.endswith(".gguf") for name in names)
    resolve = f"/{repository}/resolve/main"
    shape = await _hub_shape(hub, resolve, names, is_gguf=is_gguf)
    return WeightIndex(bytes_to_mib(weights), is_gguf, shape)


def _hub_files(sizes: Mapping[str, int], quant: str | None) -> frozenset[str]:
    """Return the files that an engine downloads: for GGUF without a quantization, Q4_K_M as llama.cpp does."""
    top = [name for name in sizes if "/" not in name]
    models = gguf_models(top, quant or "Q4_K_M") or gguf_models(top, quant)
    if models and not any(name.endswith(".safetensors") for name in top):
        return frozenset(with_shards(models[0], top))
    return loaded_files(sizes, quant)


async def _hub_shape(
    hub: httpx.AsyncClient, resolve: str, names: frozenset[str], *, is_gguf: bool
) -> ModelShape | None:
    if not is_gguf:
        config = await hub.get(f"{resolve}/config.json")
        content = config.json() if config.status_code == 200 else None
        return shape_from_config(content) if isinstance(content, dict) else None
    first = next(name for name in sorted(names) if not is_later_shard(name))
    begin = bytearray()
    request_range = {"Range": f"bytes=0-{_HEADER_BYTES - 1}"}
    async with hub.stream("GET", f"{resolve}/{first}", headers=request_range) as answer:
        if answer.is_success:
            async for chunk in answer.aiter_bytes():
                begin += chunk
                if len(begin) >= _HEADER_BYTES:
                    break
    return shape_from_gguf(partial_metadata(bytes(begin))) if begin else None
