"""Where a model's weights are on this host, and how large."""

from __future__ import annotations

import re
from pathlib import Path

from cortex_common.errors import BadRequest
from cortex_common.schema.instances import LoadSpec
from cortex_common.units import bytes_to_mib

_SHARD = re.compile(r"^(.*)-\d{5}-of-(\d{5})\.gguf$")
_WEIGHT_SUFFIXES = {".safetensors", ".gguf", ".bin", ".uqff", ".pt"}


def local_path(spec: LoadSpec) -> Path | None:
    """The file or directory that a spec means on this host; None when it names a repository."""
    source = Path(spec.source or spec.model_id).expanduser()
    path = source / spec.file if spec.file is not None else source
    return path if path.exists() else None


def repository(spec: LoadSpec) -> str:
    """The repository that a spec without local weights names.

    Raises:
        BadRequest: it names a path, where nothing is.
    """
    source = spec.source or spec.model_id
    if source.startswith(("/", "~", ".")):
        raise _nothing_there(spec)
    return source


def gguf_file(spec: LoadSpec) -> Path:
    """The GGUF file that a spec means; the first shard where there are several.

    Raises:
        BadRequest: there is none, or a directory has several and none was named.
    """
    source = spec.source or spec.model_id
    path = local_path(spec)
    if path is None:
        raise _nothing_there(spec)
    if path.is_file():
        return path.resolve()
    wanted = f"*{spec.quant}*.gguf" if spec.quant else "*.gguf"
    found = sorted(f for f in path.glob(wanted) if not _later_shard(f.name))
    if len(found) == 1:
        return found[0].resolve()
    names = ", ".join(f.name for f in found[:5]) or "none"
    raise BadRequest(
        f"{source} must hold exactly one GGUF file that fits, it holds {names}",
        param="file",
        hints=("name the file with `file`",),
    )


def _nothing_there(spec: LoadSpec) -> BadRequest:
    source = spec.source or spec.model_id
    named = f"{source}/{spec.file}" if spec.file else source
    return BadRequest(
        f"there is no file {named} on this node",
        param="source",
        hints=("set source (and file) of the profile to a file on the node",),
    )


def _later_shard(name: str) -> bool:
    return _SHARD.match(name) is not None and "-00001-of-" not in name


def size_mb(path: Path) -> int:
    """MiB of a weight file with all its shards, or of all weight files in a directory."""
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.suffix in _WEIGHT_SUFFIXES and f.is_file()]
    elif shard := _SHARD.match(path.name):
        files = [f for f in path.parent.glob("*.gguf") if f.name.startswith(shard[1] + "-")]
    else:
        files = [path]
    return bytes_to_mib(sum(f.stat().st_size for f in files))
