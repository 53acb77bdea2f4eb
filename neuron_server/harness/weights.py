"""Location and size of a model's weights on this host."""

from __future__ import annotations

import re
from pathlib import Path

from cortex_common.errors import BadRequest
from cortex_common.schema.instances import LoadSpec
from cortex_common.units import bytes_to_mib

_SHARD = re.compile(r"^(.*)-\d{5}-of-(\d{5})\.gguf$")
_WEIGHT_SUFFIXES = {".safetensors", ".gguf", ".bin", ".uqff", ".pt"}


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
    pattern = f"*{spec.quant}*.gguf" if spec.quant else "*.gguf"
    files = sorted(f for f in path.glob(pattern) if not _is_later_shard(f.name))
    if len(files) == 1:
        return files[0].resolve()
    names = ", ".join(f.name for f in files[:5]) or "none"
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


def _is_later_shard(name: str) -> bool:
    return _SHARD.match(name) is not None and "-00001-of-" not in name


def size_mb(path: Path) -> int:
    """Return the MiB of a weight file with all its shards, or of all weight files in a directory."""
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.suffix in _WEIGHT_SUFFIXES and f.is_file()]
    elif shard := _SHARD.match(path.name):
        files = [f for f in path.parent.glob("*.gguf") if f.name.startswith(shard[1] + "-")]
    else:
        files = [path]
    return bytes_to_mib(sum(f.stat().st_size for f in files))
