"""Location and size of a model's weights on this host."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cortex_common.errors import BadRequest, LoadFailed
from cortex_common.schema.instances import LoadSpec
from cortex_common.units import bytes_to_mib
from neuron_server.weights.selection import GGUF_SHARD, gguf_models, loaded_files, with_shards

FILES_TIMEOUT_S = 30.0
"""Seconds within which the files of a model must be found."""

_MAX_FILES = 20_000
_MAX_DEPTH = 2


def local_path(spec: LoadSpec) -> Path | None:
    """Return the file or directory of a spec's weights; None if it is not on this host."""
    source = Path(spec.source or spec.model_id).expanduser()
    path = source / spec.file if spec.file is not None else source
    return path if path.exists() else None


def repository(spec: LoadSpec) -> str:
    """Return the repository of a spec without local weights.

    Raises:
        BadRequest: the source is a path, which does not exist.
    """
    source = spec.source or spec.model_id
    if source.startswith(("/", "~", ".")):
        raise _not_found(spec)
    return source


def gguf_file(spec: LoadSpec) -> Path:
    """Return the GGUF file of a spec; the first shard if there are several.

    Raises:
        BadRequest: there is none, or a directory contains several and the spec names none.
    """
    source = spec.source or spec.model_id
    path = local_path(spec)
    if path is None:
        raise _not_found(spec)
    if path.is_file():
        return path.resolve()
    files = gguf_models((f.name for f in path.iterdir()), spec.quant)
    if len(files) == 1:
        return (path / files[0]).resolve()
    names = ", ".join(files[:5]) or "none"
    raise BadRequest(
        f"{source} must contain exactly one matching GGUF file, but contains {names}",
        param="file",
        hints=("set `file` to one of them",),
    )


def _not_found(spec: LoadSpec) -> BadRequest:
    source = spec.source or spec.model_id
    path = f"{source}/{spec.file}" if spec.file else source
    return BadRequest(
        f"there is no file {path} on this node",
        param="source",
        hints=("set source (and file) of the model config to a file on the node",),
    )


def size_mb(path: Path, quant: str | None = None) -> int:
    """Return the MiB of a weight file with all its shards, or of the files that are loaded from a directory."""
    if path.is_dir():
        sizes = directory_sizes(path)
        return bytes_to_mib(sum(sizes[name] for name in loaded_files(sizes, quant)))
    files = [path]
    if GGUF_SHARD.match(path.name):
        files = [
            path.parent / n for n in with_shards(path.name, (f.name for f in path.parent.iterdir()))
        ]
    return bytes_to_mib(sum(f.stat().st_size for f in files))


def directory_sizes(directory: Path) -> dict[str, int]:
    """Return the bytes of the files in a directory, by path relative to it; at most 20,000 files, three levels deep."""
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(directory, followlinks=True):
        relative = Path(folder).relative_to(directory)
        if len(relative.parts) >= _MAX_DEPTH or len(sizes) > _MAX_FILES:
            folders.clear()
        for name in files:
            with contextlib.suppress(OSError):  # a dangling link, or removed since
                sizes[(relative / name).as_posix()] = (Path(folder) / name).stat().st_size
    return sizes


def stalled_files_error(spec: LoadSpec) -> LoadFailed:
    """Return the error for weights on a file system that does not answer."""
    return LoadFailed(
        f"the weights of {spec.model_id} could not be looked up within {FILES_TIMEOUT_S:.0f} s",
        hints=(f"does the file system of {spec.source or spec.model_id} respond? try `ls` there",),
    )
