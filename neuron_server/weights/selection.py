"""Which files of a directory or repository an engine loads (pure functions).

A repository often holds the same weights several times: as shards and consolidated, in several quantizations, or next
to the state of an optimizer. An engine loads one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

GGUF_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_PROJECTOR = re.compile(r"(^|[-_.])mmproj([-_.]|$)", re.IGNORECASE)
_TRAINING_STATE = re.compile(
    r"^(optimizer|scheduler|scaler|training_args|rng_state|random_states|trainer_state|adapter_model)"
    r"|(^|[-_])optim(_states)?([-_.]|$)",
    re.IGNORECASE,
)
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|int8)(?=[.-])")
_OTHER_SUFFIXES = (".bin", ".pt", ".pth")


def is_projector(name: str) -> bool:
    """Return whether a GGUF file is the projector of a multimodal model, which is loaded in addition to a model."""
    return name.endswith(".gguf") and _PROJECTOR.search(name) is not None


def is_later_shard(name: str) -> bool:
    """Return whether a GGUF file is a shard other than the first."""
    match = GGUF_SHARD.match(name)
    return match is not None and match[2] != "00001"


def gguf_models(names: Iterable[str], quant: str | None) -> list[str]:
    """Return the GGUF files that are models, each by its first shard; `quant` selects one quantization."""
    models = (n for n in names if n.endswith(".gguf") and not is_later_shard(n))
    return sorted(
        n for n in models if not is_projector(n) and (not quant or quant.lower() in n.lower())
    )


def with_shards(name: str, names: Iterable[str]) -> list[str]:
    """Return a GGUF file with all its shards, as far as they are among some names."""
    match = GGUF_SHARD.match(name)
    if match is None:
        return [name]
    shards = ((n, GGUF_SHARD.match(n)) for n in names)
    return sorted(n for n, shard in shards if shard and shard[1] == match[1])


def loaded_files(sizes: Mapping[str, int], quant: str | None = None) -> frozenset[str]:
    """Return the weight files that an engine loads from a directory; empty if that is not clear.

    Args:
        sizes: bytes by path relative to the directory, with slashes.
        quant: quantization of a GGUF file.
    """
    top = {name for name in sizes if "/" not in name}
    if safetensors := _loaded_safetensors(top):
        return safetensors
    if models := gguf_models(top, quant):
        # The one that is loaded is named by the caller; without a name, the largest is the safe assumption.
        candidates = (with_shards(model, top) for model in models)
        return frozenset(max(candidates, key=lambda names: sum(sizes[n] for n in names)))
    if uqff := {n for n in top if n.endswith(".uqff")}:
        return frozenset({max(uqff, key=lambda n: sizes[n])})
    if others := {n for n in top if n.endswith(_OTHER_SUFFIXES) and not _is_training_state(n)}:
        sharded = {n for n in others if not n.startswith("consolidated")}
        return frozenset(sharded or others)
    return _loaded_from_parts(sizes, quant)


def _loaded_safetensors(names: Iterable[str]) -> frozenset[str]:
    """Return the safetensors files of one directory that are loaded: shards rather than a consolidated copy."""
    files = {n for n in names if n.endswith(".safetensors") and not _is_training_state(n)}
    files = {n for n in files if not n.startswith("consolidated")} or files
    return frozenset({n for n in files if not _VARIANT.search(n)} or files)


def _loaded_from_parts(sizes: Mapping[str, int], quant: str | None) -> frozenset[str]:
    """Return the files of a pipeline, whose parts (unet, vae, ...) are in directories of their own."""
    parts: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        part, _, rest = name.partition("/")
        if rest and not part.startswith(("checkpoint-", "global_step", ".", "original", "onnx")):
            parts.setdefault(part, {})[rest] = size
    return frozenset(
        f"{part}/{name}" for part, files in parts.items() for name in loaded_files(files, quant)
    )


def _is_training_state(name: str) -> bool:
    return _TRAINING_STATE.search(PurePosixPath(name).name) is not None
